"""Image to image and inpainting, against the trajectories of diffusers and of the original code."""

import pytest
import torch
from torch import Tensor

import flow
from sd35.fitting import binary, fitted, latent_mask
from sd35.guidance import Guidance
from sd35.tasks.generate import Generate, Generation
from vae.image import to_tensor
from vae.model import SCALE, SHIFT

LIMIT = 1e-5
"""Of the largest magnitude, over a whole trajectory."""

SIXTEEN = ["plain", "half", "one_step", "two_images", "other_size"]
ORIGINAL = ["original_euler", "original_dpmpp_2m", "original_half", "original_slg"]


def generation(runs, case: str, model, image: Tensor, noise: Tensor, **given) -> Generation:
    told = runs.config["cases"][case]
    strength = told.get("strength", told.get("denoise"))
    given = {
        "steps": told["steps"],
        "strength": strength,
        "guidance_scale": told["guidance_scale"],
        "solver": told.get("sampler", "euler"),
        "image": image,
        "images_per_prompt": len(noise),
        **given,
    }
    return Generation(model, Generate.of("", given, noise=noise))


def states(run: Generation) -> Tensor:
    return torch.stack([run.start, *(step.x.cpu() for step in run)])


@pytest.mark.parametrize("case", SIXTEEN)
@torch.no_grad()
def test_image_to_image_as_in_diffusers(case, runs, error) -> None:
    file = runs("img2img")
    image = file["plain/image_latents" if case == "two_images" else f"{case}/image_latents"]
    rules = {"start_rule": "diffusers", "schedule": "diffusers"}
    run = generation(file, case, file.model(), image, file[f"{case}/noise"], **rules)
    assert run.settings.left_out == file.config["cases"][case]["start_index"]
    assert error(run.sigmas, file[f"{case}/sigmas"]) <= 2e-7
    assert error(states(run), file[f"{case}/trajectory"]) <= LIMIT


@pytest.mark.parametrize("case", ORIGINAL)
@torch.no_grad()
def test_image_to_image_as_in_the_original(case, runs, error) -> None:
    file = runs("img2img")
    given = {}
    if skip := file.config["cases"][case]["skip_layer"]:
        skip = flow.SkipLayer(skip["scale"], skip["start"], skip["end"], tuple(skip["layers"]))
        given = {"guidance": Guidance(skip_layer=skip)}
    image, noise = file["original/image_latents"], file["original/noise"]
    run = generation(file, case, file.model(), image, noise, **given)
    assert run.settings.left_out == file.config["cases"][case]["start_index"]
    assert error(states(run), file[f"{case}/trajectory"]) <= LIMIT


def test_every_start_step_of_both(runs) -> None:
    table = runs("img2img").config["start_index_table"]["rows"]
    assert len(table) > 100
    for steps, strength, original, diffusers in table:
        found = [flow.start_step(steps, strength, rule) for rule in ("reference", "diffusers")]
        assert found == [original, diffusers], (steps, strength)


@torch.no_grad()
def test_pictures_are_read_resized_and_encoded_as_there(runs, error) -> None:
    file = runs("img2img")
    image = to_tensor(file["in/image_uint8"].numpy())
    assert torch.equal(image, file["out/image_normalised"])
    other = fitted(to_tensor(file["in/image_other_size_uint8"].numpy()), 48, 64, "stretch")
    assert torch.equal(other, file["other_size/image_normalised"])
    mean, logvar = file.model().vae.moments(image)
    assert error(mean, file["out/posterior_mean"]) <= LIMIT
    drawn = mean + (logvar / 2).exp() * file["plain/posterior_noise"]
    assert error((drawn - SHIFT) * SCALE, file["plain/image_latents"]) <= LIMIT


def mask_of(file, name: str = "in/mask_uint8", box=None) -> Tensor:
    return file[name].float()[None, None] / 255


@pytest.mark.parametrize("case", ["plain", "full", "two_images", "crop"])
@torch.no_grad()
def test_inpainting_as_in_diffusers(case, runs, error) -> None:
    file = runs("inpaint")
    noise, image = file[f"{case}/noise"], file[f"{case}/image_latents"]
    small = file[f"{case}/mask_latent"][:1]
    mask = small.repeat_interleave(8, -1).repeat_interleave(8, -2)
    rules = {"schedule": "diffusers", "mask": mask}
    rules |= {"start_rule": "diffusers"} if file.config["cases"][case]["strength"] < 1 else {}
    run = generation(file, case, file.model(), image, noise, **rules)
    found = states(run)
    assert error(found, file[f"{case}/trajectory"]) <= LIMIT
    kept = (small == 0).expand_as(image)
    assert error(found[-1][kept], image[kept]) <= 1e-6


def test_masks_as_in_diffusers(runs) -> None:
    file = runs("inpaint")
    mask = binary(2 * mask_of(file) - 1, "redrawn")
    assert torch.equal(mask, file["out/mask_pixels"])
    assert torch.equal(latent_mask(mask, "nearest"), file["plain/mask_latent"])
    assert bool((latent_mask(mask, "any") >= file["plain/mask_latent"]).all())


@pytest.mark.parametrize("case", ["c33_plain", "c33_full"])
@torch.no_grad()
def test_a_transformer_made_for_inpainting(case, runs, error) -> None:
    """The trajectory from the stored draws; and the masked picture, its mean encoded here, as there."""
    file = runs("inpaint")
    weights = file.under("weights/model.diffusion_model.")
    model = file.model(changed=weights)
    assert model.mmdit.config.inpaints
    assert model.mmdit.config.channels == 16
    picture, mask = to_tensor(file["in/image_uint8"].numpy()), mask_of(file)
    run = generation(
        file,
        case,
        model,
        picture,
        file[f"{case}/noise"],
        mask=(mask >= 0.5).float(),
        start_rule="diffusers" if file.config["cases"][case]["strength"] < 1 else None,
        schedule="diffusers",
    )
    (beside,) = run.velocity.conditions
    assert torch.equal(beside.channels[:, :1], file[f"{case}/mask_latent"])
    mean, logvar = model.vae.moments(file[f"{case}/masked_image"])
    assert torch.equal(beside.channels[:, 1:], (mean - SHIFT) * SCALE)
    draw = file[f"{case}/posterior_noise_{1 if case == 'c33_plain' else 0}"]
    stored = (mean + (logvar / 2).exp() * draw - SHIFT) * SCALE
    assert error(stored, file[f"{case}/masked_image_latents"]) <= LIMIT
    beside.channels[:, 1:] = stored
    run.start = file[f"{case}/trajectory"][0]
    assert error(states(run), file[f"{case}/trajectory"]) <= LIMIT


@torch.no_grad()
def test_inpainted_latents_are_decoded_with_the_shift(runs, error) -> None:
    """Diffusers forgets it."""
    file = runs("inpaint")
    decoded = file.model().decode(file["plain/trajectory"][-1])
    assert error(decoded, file["plain/decoded_with_shift"]) <= LIMIT
    assert error(decoded, file["plain/decoded"]) > 1e-2
