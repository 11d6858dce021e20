"""What goes wrong in a run ends in one line, before work starts or without loss of what was saved."""

import json
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from sd35 import SettingsError, train_lora
from sd35.cli import main
from sd35.train.cache import Cache
from sd35.train.course import IN_A_ROW, Course, DivergedError
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
    model_folder, folder, settings, tmp_path
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
    train_lora(model_folder, folder, tmp_path / "run", places=places, **settings, skip_unreadable=True)
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


def test_a_loss_that_runs_away_ends_the_run_and_keeps_the_save_before(
    model_folder, pictures, settings, cache, tmp_path, spoil
) -> None:
    spoil(lambda step: 1e5 if step > 4 else 1)
    with pytest.raises(DivergedError, match=r"in step 7, after .*, and the last save, of step 4, is in"):
        train_lora(
            model_folder,
            pictures,
            tmp_path / "run",
            places={"cache": cache},
            **(settings | {"steps": 20, "save_every": 4}),
        )
    assert int(load_file(tmp_path / "run" / "state.safetensors")["step"]) == 4


def test_a_single_high_loss_is_chance() -> None:
    """Weights of the loss make it so: sigma_sqrt is 1 / sigma²."""
    course = Course()
    losses = [1.0, 2e3, 1.0, 5e4, 3e4, 2.0]
    assert not any(course.runs_away(loss) for loss in losses)
    assert [course.runs_away(1e4) for _ in range(IN_A_ROW)] == [False] * (IN_A_ROW - 1) + [True]
