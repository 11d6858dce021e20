"""The autoencoder's training: where it starts, what normalising does, what psnr means."""

from math import log

import torch

from sd35.noise import seeded
from sd35.tiny.autoencoder import CONFIG, NOISE, _loss, is_hidden, normalise, pictures, psnr, saved
from sd35.tiny.colours import colour_passing_vae
from sd35.tiny.fit import Plan, Trainer
from sd35.tiny.painting import paint_at_random, table_of
from sd35.tiny.scenes import training_scene
from vae import SCALE, VAE

CPU = torch.device("cpu")


def test_colours_pass_before_anything_is_learned() -> None:
    image = pictures(seeded(0), 2, CPU)
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
    image = pictures(seeded(0), 2, CPU)
    with torch.no_grad():
        before = vae.decode(vae.encode(image))
        normalise(vae, image)
        latents = vae.encode(image)
        after = vae.decode(latents)
    assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(16), atol=1e-4)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(16), atol=1e-3)
    inside = (slice(None), slice(None), slice(48, 80), slice(48, 80))  # away from the padded border
    assert (after - before)[inside].abs().mean() < 0.02


def test_normalise_gives_every_posterior_the_same_deviation() -> None:
    vae = colour_passing_vae(CONFIG, seed=0)
    image = pictures(seeded(0), 1, CPU)
    normalise(vae, image)
    with torch.no_grad():
        _, logvar = vae.moments(image)
    assert torch.allclose(logvar, torch.full_like(logvar, 2 * log(NOISE / SCALE)), atol=1e-5)


def test_steps_lower_each_part_of_the_loss() -> None:
    generator = seeded(0)
    image = paint_at_random(table_of([training_scene(generator) for _ in range(2)]), generator, size=32)
    plan = Plan(learning_rate=1e-4, muon=2.0, warmup=0.0)
    trainer = Trainer(colour_passing_vae(CONFIG, seed=0), plan, is_hidden)
    parts: list[dict[str, float]] = []
    for _ in range(6):
        losses = {name: torch.zeros(()) for name in ("picture", "half", "back")}
        _loss(trainer.worker, image, seeded(1), losses, back=True).backward()
        trainer.step(0.3)
        parts.append({name: float(value) for name, value in losses.items()})
    assert all(parts[-1][name] < 0.95 * parts[0][name] for name in parts[0]), parts


def test_what_is_saved_is_within_half_a_step_of_eight_bits() -> None:
    image = 3 * torch.rand(1, 3, 16, 16, generator=seeded(0)) - 1.5
    off = saved(image, seeded(1)) - image.clamp(-1, 1)
    assert 0.9 / 255 < off.abs().max() <= 1 / 255 + 1e-6


def test_psnr_of_a_known_error() -> None:
    class Off(VAE):
        def encode(self, image: torch.Tensor, **_: object) -> torch.Tensor:
            return image

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents + 0.02

    image = pictures(seeded(0), 2, CPU)
    assert torch.allclose(psnr(Off(CONFIG), image), torch.tensor(40.0), atol=1e-3)  # 20 log10(2 / 0.02)
