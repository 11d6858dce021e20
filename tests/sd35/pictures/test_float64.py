"""Image to image and inpainting in float64, against the last states that the references have there.

The sinusoids of the noise level are float32 in every implementation. Where this processor gives them to the
last bit as the one that made the reference, what is left is rounding in float64; a unit in the last place
of ω, where libraries differ, moves the last state by 1e-7 to 2e-6 of its largest magnitude.
"""

from hashlib import sha256

import pytest
import torch
from torch import Tensor

import flow
from mmdit import embed

CASES = {
    "img2img": (
        *("plain", "half", "one_step", "two_images", "other_size"),
        *("original_euler", "original_dpmpp_2m", "original_half"),
    ),
    "inpaint": ("plain", "full", "two_images", "crop"),
}
SINUSOIDS = "4808116416d2d7f05d47512059ada2770cb206066a6d44ca27d46be99b79fb95"
"""SHA-256 of the sinusoids of all levels of these cases, where the reference was made."""
ROUNDING, ANOTHER_PROCESSOR = 1e-13, 5e-6


@pytest.fixture(scope="module")
def limit(runs) -> float:
    levels = torch.cat([runs(name)[f"{case}/sigmas"] for name in CASES for case in CASES[name]])
    digest = sha256(embed.timestep_embedding(levels).numpy().tobytes()).hexdigest()
    return ROUNDING if digest == SINUSOIDS else ANOTHER_PROCESSOR


def last_state(file, case: str) -> Tensor:
    """By `flow` alone, from the stored latents, noise, levels and mask."""
    told, own = file.config["cases"][case], "original" if case.startswith("original") else case
    taken = "plain" if (file.name, case) == ("img2img", "two_images") else own
    noise, sigmas = file[f"{own}/noise"].double(), file[f"{case}/sigmas"]
    image = file[f"{taken}/image_latents"].double().expand_as(noise)
    model = file.model(torch.float64)
    velocity = model.velocity(model.cond, model.uncond, told["guidance_scale"])
    if file.name == "inpaint":
        velocity = flow.inpaint(velocity, image, noise, file[f"{case}/mask_latent"][:1].double())
    start = flow.interpolate(image, noise, sigmas[0].double())
    return flow.solve(velocity, start, sigmas, solver=told.get("sampler", "euler"))


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in CASES for case in CASES[name]])
@torch.no_grad()
def test_the_last_state_is_the_reference_s(name, case, runs, error, limit) -> None:
    expected = runs("final64")[f"{name}/{case}/final"]
    assert error(last_state(runs(name), case), expected) <= limit


@torch.no_grad()
def test_a_unit_of_omega_is_what_another_processor_may_move_it_by(runs, error, monkeypatch) -> None:
    exp, generator = torch.exp, torch.Generator().manual_seed(0)

    def moved(x: Tensor) -> Tensor:
        """exp, each value one unit in the last place up, down or where it was."""
        value = exp(x)
        to = torch.randint(-1, 2, x.shape, generator=generator.manual_seed(0))
        return torch.where(to == 0, value, value.nextafter(value + to))

    monkeypatch.setattr(embed.torch, "exp", moved)
    expected = runs("final64")["img2img/original_euler/final"]
    found = error(last_state(runs("img2img"), "original_euler"), expected)
    assert 1e-8 < found <= ANOTHER_PROCESSOR
