"""DreamBooth, whole models, ControlNets, autoencoders, reflow: each trained for a few steps, and loaded."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sd35
import weights
from sd35 import SettingsError
from sd35.train.controlnet import controlled, controlnet_of
from sd35.train.data import Batch
from sd35.train.vae import posterior_kl

FEW = {"steps": 2, "batch_size": 2, "learning_rate": 0.01}


def velocity(mmdit, **more):
    source = torch.Generator().manual_seed(0)
    config = mmdit.config
    latents = torch.randn(2, config.channels, 4, 4, generator=source)
    context = torch.randn(2, 5, config.context_dim, generator=source)
    pooled = torch.randn(2, config.pooled_dim, generator=source)
    with torch.no_grad():
        return mmdit(latents, torch.tensor([0.3, 0.8]), context, pooled, **more)


def test_dreambooth_draws_its_class_pictures_once(model_folder, pictures, cache, tmp_path) -> None:
    more = {"class_prompt": ("a shape", "a star"), "class_pictures": 3, "buckets": False, "rank": 2}
    run = {"class_data": tmp_path / "class", "places": {"cache": cache}}
    first = sd35.train_dreambooth(model_folder, pictures, tmp_path / "first", **run, **FEW, **more)
    drawn = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "class").iterdir()}
    assert set(drawn) == {f"0000{n}.{suffix}" for n in range(3) for suffix in ("png", "txt")}
    assert (tmp_path / "class" / "00001.txt").read_text() == "a star"
    pipe, kept = sd35.load(model_folder), np.asarray(Image.open(tmp_path / "class" / "00001.png"), int)
    plain, guided = (
        np.asarray(pipe.generate("a star", seed=1, steps=28, guidance_scale=scale).images[0], int)
        for scale in (1.0, 4.5)
    )
    assert abs(kept - plain).max() <= 1 < abs(kept - guided).max()  # without guidance
    again = sd35.train_dreambooth(model_folder, pictures, tmp_path / "again", **run, **FEW, **more)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "class").iterdir()} == drawn
    assert first.read_bytes() == again.read_bytes()
    other = sd35.train_dreambooth(
        model_folder, pictures, tmp_path / "other", **run, **FEW, **more, prior_weight=0.5
    )
    assert first.read_bytes() != other.read_bytes()
    with pytest.raises(SettingsError, match="class_prompt says what is to be kept"):
        sd35.train_dreambooth(model_folder, pictures, tmp_path / "none")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_whole_model_is_trained_and_loaded(model_folder, pictures, cache, tmp_path, optimizer) -> None:
    def train(name, steps, **places):
        return sd35.train_full(
            model_folder,
            pictures,
            tmp_path / name,
            places={"cache": cache, **places},
            schedule="constant",
            **(FEW | {"steps": steps, "optimizer": optimizer, "checkpoint_blocks": name == "cut"}),
        )

    path = train("whole", 2)
    pipe = sd35.load(path, vae=model_folder, text_encoders=model_folder)
    assert pipe.size == (32, 32)
    before = weights.load_mmdit(model_folder, dtype=torch.float32)
    assert (velocity(pipe.mmdit) - velocity(before)).abs().max() > 1e-3
    train("cut", 1)
    train("cut", 2, resume=True)
    ours, resumed = load_file(path), load_file(tmp_path / "cut" / "model.safetensors")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in ours.items())


def test_masters_keep_what_bfloat16_would_lose(model_folder, pictures, tmp_path) -> None:
    """Steps of a thousandth of a weight's last bit add up in the masters."""
    path = sd35.train_full(
        model_folder,
        pictures,
        tmp_path / "run",
        places={"dtype": "bfloat16"},
        **(FEW | {"learning_rate": 1e-7}),
    )
    name = "model.diffusion_model.x_embedder.proj.weight"
    state, model = load_file(path.with_name("state.safetensors")), load_file(path)
    before = weights.load_mmdit(model_folder, dtype=torch.bfloat16).x_embedder.proj.weight
    master = state["weight:x_embedder.proj.weight"]
    assert model[name].dtype == torch.bfloat16
    assert (model[name] == before).float().mean() > 0.98  # some are nearly zero, and move
    moved = (master - before.float()).abs()
    assert (moved > 1e-8).float().mean() > 0.98
    assert moved.max() < 1e-6


def test_a_controlnet_begins_as_nothing_and_learns(model_folder, pictures, cache, tmp_path) -> None:
    mmdit = weights.load_mmdit(model_folder, dtype=torch.float32)
    fresh = controlnet_of(mmdit, depth=1, control_type="canny")
    batch = Batch(torch.zeros(2, 16, 4, 4), torch.zeros(2, 5, 32), torch.zeros(2, 24), ("",) * 2)
    batch = batch._replace(control=torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0)))

    def under(net):
        source = torch.Generator().manual_seed(1)
        x, sigma = torch.randn(2, 16, 4, 4, generator=source), torch.tensor([0.2, 0.7])
        with torch.no_grad():
            return controlled(mmdit, net, batch)(x, sigma, batch.context, batch.pooled), mmdit(
                x, sigma, batch.context, batch.pooled
            )

    assert torch.equal(*under(fresh))
    run = {"control_data": pictures, "places": {"cache": cache}, "depth": 1, "control_type": "canny"}
    path = sd35.train_controlnet(
        model_folder, pictures, tmp_path / "run", validate_every=1, **run, **(FEW | {"steps": 3})
    )
    net = weights.load_controlnet(path, dtype=torch.float32)
    assert int(net.control_type) == 1
    controlled_, alone = under(net)
    assert (controlled_ - alone).abs().max() > 1e-3
    shutil.copytree(pictures, tmp_path / "others")
    (tmp_path / "others" / "2.png").unlink()
    (tmp_path / "others" / "2.txt").unlink()
    with pytest.raises(SettingsError, match=r"there is no control picture .*2\.png"):
        sd35.train_controlnet(
            model_folder, pictures, tmp_path / "none", **(run | {"control_data": tmp_path / "others"})
        )


def test_an_autoencoder_is_trained(model_folder, pictures, tmp_path) -> None:
    before = weights.load_vae(model_folder, dtype=torch.float32)
    for decoder_only in (True, False):
        path = sd35.train_vae(
            model_folder, pictures, tmp_path / str(decoder_only), decoder_only=decoder_only, **FEW
        )
        after = weights.load_vae(path, dtype=torch.float32)
        image = torch.zeros(1, 3, 32, 32)
        with torch.no_grad():
            same = torch.equal(before.encode(image), after.encode(image))
            assert same == decoder_only
            assert not torch.equal(before.decode(before.encode(image)), after.decode(before.encode(image)))
    with pytest.raises(SettingsError, match="caption_dropout has no effect on this way of training"):
        sd35.train_vae(model_folder, pictures, tmp_path / "none", caption_dropout=0.5)


def test_the_divergence_is_that_of_the_reference(shared_reference) -> None:
    stored = load_file(shared_reference / "training" / "metrics.safetensors")
    mean, logvar = stored["in/moments"].chunk(2, dim=1)
    assert torch.allclose(posterior_kl(mean, logvar.clamp(-30, 20)), stored["out/kl"], rtol=1e-6)


def test_reflow_keeps_its_pairs(model_folder, cache, tmp_path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n\na blue star\n")
    more = {"pairs": 3, "pair_steps": 2, "rank": 2, "places": {"cache": cache}}
    path = sd35.train_reflow(model_folder, prompts, tmp_path / "run", **more, **FEW)
    pair = load_file(tmp_path / "run" / "pairs" / "000001.safetensors")
    pipe = sd35.load(model_folder)
    noise = sd35.draw_noise([torch.Generator().manual_seed(1)], (16, 4, 4))
    assert torch.equal(pair["noise"], noise)
    drawn = pipe.generate("a blue star", seed=1, steps=2)
    assert torch.allclose(pair["latents"], drawn.latents, atol=1e-4)
    assert sd35.add_lora(pipe, path).has_effect
    with pytest.raises(SettingsError, match="takes a text file of prompts"):
        sd35.train_reflow(model_folder, tmp_path, tmp_path / "none")


def test_pairs_are_drawn_in_batches_as_they_are_told(model_folder, cache, tmp_path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue star\n")
    drawn_by = {"pair_steps": 3, "pair_solver": "heun", "pair_schedule": "linear", "schedule_shift": 5.0}
    drawn_by["pair_interval"] = (0.9, 1.0)
    more = {"pairs": 3, **drawn_by, "rank": 2, "places": {"cache": cache}}
    sd35.train_reflow(model_folder, prompts, tmp_path / "run", **more, **{**FEW, "batch_size": 2})
    pipe, guidance = sd35.load(model_folder), sd35.Guidance(interval=(0.9, 1.0))
    for number, prompt in enumerate(("a red circle", "a blue star", "a red circle")):
        pair = load_file(tmp_path / "run" / "pairs" / f"{number:06}.safetensors")
        settings = {"steps": 3, "solver": "heun", "schedule": "linear", "schedule_shift": 5.0}
        drawn = pipe.generate(prompt, seed=number, guidance=guidance, **settings)
        assert torch.allclose(pair["latents"], drawn.latents, atol=1e-4)
    (tmp_path / "other").mkdir()
    (tmp_path / "run" / "pairs").rename(tmp_path / "other" / "pairs")
    with pytest.raises(SettingsError, match="holds what another model, or other settings, made"):
        sd35.train_reflow(
            model_folder, prompts, tmp_path / "other", **{**more, **FEW, "pair_interval": (0.5, 1.0)}
        )
    for wrong, told in (
        ({"pair_solver": "sde"}, "pair_solver must be one of"),
        ({"pair_interval": (0.7, 1.0), "pair_guidance": 1.0}, "pair_interval has no effect"),
    ):
        with pytest.raises(SettingsError, match=told):
            sd35.train_reflow(model_folder, prompts, tmp_path / "none", **wrong)
