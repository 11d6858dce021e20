"""The autoencoder's training: where it starts, what normalising does, what psnr means."""

from pathlib import Path

import torch

from sd35.tiny import autoencoder
from sd35.tiny.autoencoder import CONFIG, crops, normalise, pictures, psnr, train_decoder
from sd35.tiny.colours import colour_passing_vae
from sd35.tiny.fit import Plan, seeded
from vae import VAE, VAEConfig

CPU = torch.device("cpu")


def test_colours_pass_before_anything_is_learned() -> None:
    image = pictures(seeded(0), 4, CPU)
    with torch.no_grad():
        started = colour_passing_vae(CONFIG, seed=0)
        error = (started.decode(started.encode(image)) - image).square().mean()
        torch.manual_seed(0)
        usual = VAE(CONFIG)
        usual_error = (usual.decode(usual.encode(image)) - image).square().mean()
    assert error < 0.05
    assert error < usual_error / 5


def test_the_start_depends_on_its_seed_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (colour_passing_vae(CONFIG, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_normalise_sets_the_statistics_and_keeps_the_picture() -> None:
    vae = colour_passing_vae(CONFIG, seed=0)
    image = pictures(seeded(0), 4, CPU)
    with torch.no_grad():
        before = vae.decode(vae.encode(image))
        normalise(vae, image)
        latents = vae.encode(image)
        after = vae.decode(latents)
    assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(16), atol=1e-4)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(16), atol=1e-3)
    inside = (slice(None), slice(None), slice(48, 80), slice(48, 80))  # away from the padded border
    assert (after - before)[inside].abs().mean() < 0.02


def test_the_decoder_is_trained_alone(tmp_path: Path, monkeypatch) -> None:
    for name in ("DECODER", "SHARPEN"):
        monkeypatch.setattr(autoencoder, name, Plan(steps=2, learning_rate=1e-3, warmup=1, ema=0.5))
    vae = VAE(VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1, latent_channels=16))
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    trained = train_decoder(vae, tmp_path, seed=0, device=CPU).state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], trained[name])}
    assert changed == {"decoder"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.safetensors", "sharpen.safetensors"]


def test_crops_are_parts_of_their_pictures() -> None:
    image = torch.arange(2 * 3 * 128 * 128, dtype=torch.float32).reshape(2, 3, 128, 128)
    parts = crops(image, 32, seeded(3))
    assert parts.shape == (4, 3, 32, 32)
    for i, part in enumerate(parts):
        index = int(part[0, 0, 0]) - i // 2 * 3 * 128 * 128
        y, x = divmod(index, 128)
        assert torch.equal(part, image[i // 2, :, y : y + 32, x : x + 32])


def test_psnr_of_a_known_error() -> None:
    class Off(VAE):
        def encode(self, image: torch.Tensor, **_: object) -> torch.Tensor:
            return image

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents + 0.02

    image = pictures(seeded(0), 2, CPU)
    assert torch.allclose(psnr(Off(CONFIG), image), torch.tensor(40.0), atol=1e-3)  # 20 log10(2 / 0.02)
