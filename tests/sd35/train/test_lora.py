"""A LoRA is trained, written as others write it, resumed to the last bit, and refuses what cannot work."""

import csv
import shutil

import pytest
import torch
from safetensors.torch import load_file

import sd35
from sd35 import SettingsError, add_lora, train_lora
from sd35.train import loop
from sd35.train.course import DivergedError
from sd35.train.fresh import fresh_lora, save_lora
from sd35.train.targets import TEXT_TARGETS, target_paths


def velocity(pipe):
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 4, 4, generator=source)
    encoding = pipe.encode_prompt("a red circle")
    with torch.no_grad():
        return pipe.mmdit(
            latents,
            torch.tensor([0.3, 0.8]),
            encoding.context.expand(2, -1, -1),
            encoding.pooled.expand(2, -1),
        )


def test_what_is_learned_is_in_the_file(trained, model_folder) -> None:
    pipe = sd35.load(model_folder)
    before = velocity(pipe)
    report = add_lora(pipe, trained / "lora.safetensors")
    assert report.has_effect
    assert (velocity(pipe) - before).abs().max() > 1e-3
    rows = list(csv.DictReader((trained / "log.csv").open()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert all(float(row["loss"]) > 0 for row in rows)


@pytest.mark.parametrize("more", [{}, {"ema": 0.9, "dora": True, "text_target": ("attention",)}])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    model_folder, pictures, settings, cache, tmp_path, monkeypatch, more
) -> None:
    def train(name, **places):
        train_lora(
            model_folder, pictures, tmp_path / name, places={"cache": cache, **places}, **settings, **more
        )
        return {file: load_file(tmp_path / name / f"{file}.safetensors") for file in ("state", "lora")}

    whole, save = train("whole"), loop.save_state

    def interrupted(folder, step, *others):
        save(folder, step, *others)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("cut")
    monkeypatch.setattr(loop, "save_state", save)
    resumed = train("cut", resume=True)
    for file, tensors in whole.items():
        assert tensors.keys() == resumed[file].keys()
        assert all(torch.equal(tensor, resumed[file][name]) for name, tensor in tensors.items())


def test_spellings_say_the_same(model_folder, tmp_path) -> None:
    """diffusers' with q, k and v apart, and kohya's with one product for all three."""
    for dora in (False, True):
        pipe = sd35.load(model_folder)
        paths = {"mmdit": target_paths(pipe.mmdit, ("blocks",))}
        paths["clip_l"] = target_paths(pipe.text.clip_l, ("blocks",), TEXT_TARGETS)
        parameters = fresh_lora(pipe, paths, rank=2, alpha=1.0, dora=dora)
        source = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in parameters.items():
                if not name.endswith("magnitude"):
                    parameter.normal_(0, 0.3, generator=source)
        expected = velocity(pipe)
        for spelling in ("diffusers", "kohya"):
            save_lora(pipe, tmp_path / f"{spelling}.safetensors", spelling)
            other = sd35.load(model_folder)
            add_lora(other, tmp_path / f"{spelling}.safetensors")
            assert torch.allclose(velocity(other), expected, atol=2e-5), (spelling, dora)


def test_a_fresh_lora_does_nothing_and_alone_has_gradients(model_folder) -> None:
    pipe = sd35.load(model_folder)
    before = velocity(pipe)
    parameters = fresh_lora(
        pipe.mmdit, {"mmdit": target_paths(pipe.mmdit, ("attention",))}, rank=4, alpha=4.0
    )
    assert torch.equal(velocity(pipe), before)
    assert {id(p) for p in pipe.mmdit.parameters() if p.requires_grad} == {id(p) for p in parameters.values()}
    deviations = [p.detach().std() * 4 for name, p in parameters.items() if name.endswith("down")]
    assert torch.stack(deviations).mean() == pytest.approx(1, abs=0.05)


def test_a_loss_that_is_not_a_number_leaves_the_last_good_state(
    model_folder, pictures, settings, cache, tmp_path, spoil
) -> None:
    """As many losses as steps are taken before the first, to compare with later."""
    spoil(lambda call: float("nan") if call == settings["steps"] + 4 else 1)
    with pytest.raises(DivergedError, match="the loss is nan in step 4, and the weights of step 3 are in"):
        train_lora(model_folder, pictures, tmp_path / "run", places={"cache": cache}, **settings)
    assert all(
        tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "lora.safetensors").values()
    )
    assert int(load_file(tmp_path / "run" / "state.safetensors")["step"]) == 3
    spoil(lambda _: 1)
    train_lora(model_folder, pictures, tmp_path / "run", places={"cache": cache, "resume": True}, **settings)


def test_a_run_is_not_resumed_as_another(trained, model_folder, pictures, settings, cache, tmp_path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(SettingsError, match="holds a run: resume it, or choose another output"):
        train_lora(model_folder, pictures, folder, places={"cache": cache}, **settings)
    resume = {"cache": cache, "resume": True}
    with pytest.raises(SettingsError, match="of another run: rank was 2 and is 3"):
        train_lora(model_folder, pictures, folder, places=resume, **(settings | {"rank": 3}))
    with pytest.raises(SettingsError, match="nothing to resume"):
        train_lora(model_folder, pictures, tmp_path / "none", places=resume, **settings)
    state = folder / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-8])
    with pytest.raises(SettingsError, match="is damaged"):
        train_lora(model_folder, pictures, folder, places=resume, **settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"rank": 100},
            "rank 100 is larger than the matrix of joint_blocks.0.*qkv, 64 x 64",
        ),
        ({"target": ("joint_blocks.*.x_block.atn.qkv",)}, "matches no linear layer; did you mean .*attn.qkv"),
        ({"warmup": 4}, "leaves nothing of 4 steps"),
        ({"optimizer": "muon"}, "muon is for whole models: choose adamw or adamw8bit"),
        ({"ema_power": 0.5}, "ema_power has no effect here, only with ema"),
        ({"resolution": 40}, "multiple of 16"),
        ({"resolution": 512}, "at most 128"),
        ({"nonsense": 1}, "there is no setting nonsense"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    model_folder, pictures, settings, cache, tmp_path, given, message
) -> None:
    with pytest.raises(SettingsError, match=message):
        train_lora(model_folder, pictures, tmp_path / "run", places={"cache": cache}, **(settings | given))
