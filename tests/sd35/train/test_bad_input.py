"""What goes wrong in a run ends in one line, before work starts or without loss of what was saved."""

import json
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sd35 import SettingsError, train_full, train_lora
from sd35.cli import main
from sd35.train.cache import Cache
from sd35.train.course import Course, DivergedError
from sd35.train.folder import read_folder
from sd35.train.log import Log
from sd35.train.state import save_state


@contextmanager
def full_disk(size: int):
    """No file may grow beyond so many bytes: what the system answers then is what a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_picture_that_ends_too_early_is_told_before_the_others_are_encoded(
    model_folder, folder, settings, tmp_path, capsys
) -> None:
    """Its header says a size all the same."""
    from PIL import Image

    Image.open(folder / "1.png").save(folder / "1.jpg", quality=95)
    (folder / "1.png").unlink()
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:-600])
    assert len(read_folder(folder)[0]) == 4
    places = {"cache": tmp_path / "cache"}
    with pytest.raises(SettingsError, match=r"1\.jpg is damaged .*: mend or remove it, or skip such"):
        train_lora(model_folder, folder, tmp_path / "run", places=places, **settings)
    assert not list((tmp_path / "cache").glob("latents/*"))
    places["progress"] = True
    train_lora(model_folder, folder, tmp_path / "run", places=places, **settings, skip_unreadable=True)
    (note,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("left out"))
    assert note.endswith(")")  # without the advice that was followed
    assert "skip" not in note
    assert len(list((tmp_path / "cache").glob("latents/*"))) == 3


def test_a_caption_in_json_without_a_picture_is_refused(folder) -> None:
    (folder / "about.json").write_text(json.dumps({"licence": "none"}))
    assert len(read_folder(folder)[0]) == 4
    (folder / "9.json").write_text(json.dumps({"caption": "a star"}))
    with pytest.raises(SettingsError, match=r"9\.json has no picture beside its caption"):
        read_folder(folder)


def test_a_disk_that_fills_up_leaves_the_last_save(
    trained, model_folder, pictures, cache, tmp_path, capsys
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in ("state.safetensors", "lora.safetensors")}
    given = [
        *("train", "lora", "-m", str(model_folder), "--data", str(pictures), "--cache", str(cache)),
        *("--device", "cpu", "--steps", "4", "--batch-size", "2", "--rank", "2", "--save-every", "2"),
        *("--learning-rate", "0.01"),
    ]
    with full_disk(20_000):
        assert main([*given, "-o", str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"sd35 train lora: error: File too large: cannot write {tmp_path}/other/state.safetensors"
    assert {path.name for path in (tmp_path / "other").iterdir()} == {"log.csv", "lora.safetensors"}
    with full_disk(len(before["lora.safetensors"]) + 500):  # the state is larger
        assert main([*given, "--steps", "4", "-o", str(run), "--resume"]) == 0  # has nothing left to do
        with pytest.raises(OSError, match=r"File too large: cannot write .*state\.safetensors"):
            save_state(run, 5, {"weight:x": torch.zeros(100_000)}, {})
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not list(run.glob(".sd35-*"))


def test_a_cache_on_a_full_disk(tmp_path) -> None:
    cache = Cache(tmp_path, "made")
    with full_disk(1000), pytest.raises(OSError, match=r"File too large: cannot write .*key"):
        cache.kept("key", lambda: {"x": torch.zeros(1000)})
    assert not cache.has("key")


def test_a_row_of_the_log_that_was_cut_off_is_taken_again(tmp_path) -> None:
    log = Log(tmp_path, [], after=0, tensorboard=False)
    for step in range(1, 13):
        log.add({"step": step, "loss": 1.0, "learning_rate": 1.0, "gradient_norm": 1.0, "seconds": 1.0})
    text = (tmp_path / "log.csv").read_text()
    (tmp_path / "log.csv").write_text(text[: text.rindex("12,") + 1])  # "1" of step 12
    Log(tmp_path, [], after=11, tensorboard=False)
    steps = [line.split(",")[0] for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(1, 12)]


def test_a_run_that_diverges_ends_and_keeps_the_last_save_that_was_good(
    model_folder, pictures, settings, cache, tmp_path, monkeypatch
) -> None:
    """The loss stays finite, as that of a destroyed network does."""
    from sd35.train import loop

    monkeypatch.setattr(loop, "learning_rate", lambda step, training: 1e-3 if step < 4 else 1.0)
    given = {name: one for name, one in settings.items() if name != "rank"} | {"steps": 40, "save_every": 4}
    with pytest.raises(DivergedError, match=r"diverged: after step .* times .*, of step 4, is in .*/run:"):
        train_full(model_folder, pictures, tmp_path / "run", places={"cache": cache}, **given)
    state = load_file(tmp_path / "run" / "state.safetensors")
    assert int(state["step"]) == 4
    assert all(one.isfinite().all() for one in state.values())


@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_a_healthy_run_is_not_taken_for_lost(rate) -> None:
    """Losses of batches of one, weighted by 1 / sigma², scatter over decades; those that are probed fall."""
    chance = torch.Generator().manual_seed(0)
    probed = iter(2.0 * (1 - rate) ** step for step in range(10_000))
    course = Course(lambda: next(probed))
    losses = 2.0 / torch.rand(2000, generator=chance, dtype=torch.float64).square()
    assert losses.max() > 1e5
    assert not any(course.is_lost(one, saves=n % 10 == 0) for n, one in enumerate(losses.tolist()))
    assert next(probed) < 2.0  # it was looked at


@pytest.mark.parametrize(("saves", "found"), [(False, 20), (True, 4)])
def test_a_lost_run_is_told_within_twenty_steps_and_before_it_is_saved(saves, found) -> None:
    answers = iter([1.0, *[3.1] * 9])
    course, steps = Course(lambda: next(answers)), 1
    losses = [1.0, 1.0, *[9.0] * 30]
    while not course.is_lost(losses[steps - 1], saves=saves):
        steps += 1
    assert steps == found
    assert course.told(steps, 0, Path("run")) == (
        f"the run diverged: after step {steps} the loss of its first batches is 3.1, 3.1 times what it was "
        "at the start, and nothing was saved yet: try a lower learning rate or a longer warm-up"
    )


@pytest.mark.parametrize("kind", ["latents", "texts"])
def test_what_is_no_number_in_a_cache_is_told_before_work_starts(
    model_folder, pictures, settings, cache, trained, tmp_path, kind
) -> None:
    own = shutil.copytree(cache, tmp_path / "cache")
    path = sorted((own / kind).glob("*.safetensors"))[0]
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    next(iter(tensors.values())).view(-1)[3] = float("nan")
    save_file(tensors, path, metadata)
    with pytest.raises(SettingsError, match=rf"{path.name} holds NaN or infinite values \(.*remove it"):
        train_lora(model_folder, pictures, tmp_path / "run", places={"cache": own}, **settings)
    assert not (tmp_path / "run" / "log.csv").exists()
