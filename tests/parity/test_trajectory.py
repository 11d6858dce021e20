"""From a prompt's encoding to pixels: one guided step, whole trajectories, the decoded picture."""

from collections.abc import Callable, Collection
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import flow
from mmdit import MMDiT, MMDiTConfig
from sd35.verify.sinusoids import Sinusoids, stand_in
from vae import VAE, VAEConfig
from vae.image import to_uint8

Velocity = Callable[[Tensor, Tensor], Tensor]


def shapes_of(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def transformer(
    weights: dict[str, Tensor], num_heads: int, dtype: torch.dtype, sinusoids: Sinusoids
) -> MMDiT:
    model = MMDiT(replace(MMDiTConfig.from_shapes(shapes_of(weights)), num_heads=num_heads))
    model.load_state_dict(weights)
    stand_in(model.t_embedder.mlp, sinusoids)
    return model.to(dtype).eval()


def conditioned(model: MMDiT, context: Tensor, pooled: Tensor, skip_layers: Collection[int] = ()) -> Velocity:
    dtype = model.pos_embed.dtype
    return lambda x, sigma: model(x, sigma, context.to(dtype), pooled.to(dtype), skip_layers=skip_layers)


def guided(cond: Velocity, uncond: Velocity, scale: float) -> Velocity:
    return lambda x, sigma: flow.guide(cond(x, sigma), uncond(x, sigma), scale)


@pytest.fixture
def diffusers(reference):
    return reference("trajectory")


def of_diffusers(file, reference, dtype: torch.dtype) -> tuple[Velocity, Velocity]:
    """The velocities with the prompt and with the negative prompt, whose encodings are stored."""
    model_file = reference("mmdit_qknorm_dual")
    num_heads = model_file.config["sizes"]["num_heads"]
    model = transformer(model_file.weights(), num_heads, dtype, file.sinusoids)
    context, pooled = file["out/context"], file["out/pooled"]
    return conditioned(model, context[:1], pooled[:1]), conditioned(model, context[1:2], pooled[1:2])


def test_one_guided_step_as_in_diffusers(diffusers, reference, precision, agree) -> None:
    dtype, limit = precision
    cond, uncond = of_diffusers(diffusers, reference, dtype)
    scale, noise, sigmas = (
        diffusers.config["guidance_scale"],
        diffusers["in/noise"].to(dtype),
        diffusers["in/sigmas"],
    )
    step = next(flow.euler(guided(cond, uncond, scale), noise, sigmas))
    suffix = "64" if dtype == torch.float64 else ""
    actual, expected = {"x": step.x}, {"x": diffusers[f"out{suffix}/trajectory"][:1]}
    if suffix:
        actual["velocity"], expected["velocity"] = step.velocity, diffusers["out64/velocity_guided"]
    else:
        actual |= {"cond": cond(noise, sigmas[:1]), "uncond": uncond(noise, sigmas[:1])}
        expected |= {branch: diffusers[f"out/velocity_{branch}"] for branch in ("cond", "uncond")}
    agree(actual, expected, limit)


def test_whole_trajectory_as_in_diffusers(diffusers, reference, precision, agree) -> None:
    dtype, limit = precision
    config = diffusers.config
    sigmas = flow.sigmas(config["steps"], config["shift"], preset="diffusers")
    assert torch.equal(sigmas, diffusers["in/sigmas"])
    velocity = guided(*of_diffusers(diffusers, reference, dtype), config["guidance_scale"])
    steps = flow.euler(velocity, diffusers["in/noise"].to(dtype), sigmas)
    states = {str(step.number): step.x for step in steps}
    expected = diffusers["out64/trajectory" if dtype == torch.float64 else "out/trajectory"]
    agree(states, {str(i): expected[i : i + 1] for i in range(len(expected))}, limit)


def test_pixels_as_in_diffusers(diffusers, reference, error) -> None:
    file = reference("vae")
    model = VAE(VAEConfig.from_shapes(shapes_of(file.weights())))
    model.load_state_dict(file.weights())
    image = model.decode(diffusers["out/latents"])
    assert error(image, diffusers["out/image"]) < 4e-6  # 1.3e-6 measured
    pixels = to_uint8(image, "diffusers")[0].movedim(0, 2).int()
    different = (pixels - diffusers["out/pixels"].int()).abs()
    assert different.max() <= 1  # where 255 (x + 1) / 2 lies on a border
    assert (different > 0).float().mean() < 1e-3
    assert (to_uint8(image, "reference")[0].movedim(0, 2) != pixels).float().mean() > 0.2


def test_presets_give_one_picture(diffusers, reference, error) -> None:
    """The two references' schedules differ in the last bit, and so do their trajectories."""
    config = diffusers.config
    velocity = guided(*of_diffusers(diffusers, reference, torch.float32), config["guidance_scale"])
    ends = [
        flow.solve(
            velocity, diffusers["in/noise"], flow.sigmas(config["steps"], config["shift"], preset=preset)
        )
        for preset in ("reference", "diffusers")
    ]
    assert error(*ends) < 1e-5


@pytest.fixture
def original(golden):
    return golden("guidance_cfg_slg")


@pytest.fixture
def velocities(original, golden, original_sinusoids) -> dict[str, Velocity]:
    """Of the three passes: with the prompt, without, and with the prompt and layers left out."""
    file = original
    base = golden("controlnet_8b_like").weights("base/model.diffusion_model.")
    sinusoids = original_sinusoids(torch.cat([file["in/sigmas"], file["in/sigma_single"]]))
    model = transformer(base, file.config["model"]["num_heads"], torch.float32, sinusoids)
    cond = file["in/context_cond"], file["in/y_cond"]
    return {
        "cond": conditioned(model, *cond),
        "uncond": conditioned(model, file["in/context_uncond"], file["in/y_uncond"]),
        "skip": conditioned(model, *cond, skip_layers=file.config["slg_layers"]),
    }


def test_guidance_as_in_the_original(original, velocities, agree) -> None:
    """The original guides denoised states, diffusers and this project velocities: one result."""
    x, sigma = original["in/noise"], original["in/sigma_single"]
    passes = {name: velocity(x, sigma) for name, velocity in velocities.items()}
    passes["cfg"] = flow.guide(passes["cond"], passes["uncond"], original.config["cond_scale"])
    skipped = original.config["slg_scale"] * (passes["cond"] - passes["skip"])
    passes["slg_active"] = passes["cfg"] + skipped
    agree(
        {f"denoised_{name}": x - sigma * v for name, v in passes.items()},
        {f"denoised_{name}": original[f"out/denoised_{name}"] for name in passes},
        2e-6,
    )


def test_whole_trajectory_as_in_the_original(original, velocities, agree) -> None:
    """Eight Euler steps with guidance; skip-layer guidance in the first of them, as listed in the file."""
    config, sigmas = original.config, original["in/sigmas"]
    assert torch.equal(flow.sigmas(config["steps"], config["shift"]), sigmas)
    skipping = {
        float(sigmas[step]) for solver, step in config["steps_where_skip_pass_ran"] if solver == "euler"
    }

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        cond = velocities["cond"](x, sigma)
        v = flow.guide(cond, velocities["uncond"](x, sigma), config["cond_scale"])
        return (
            v + config["slg_scale"] * (cond - velocities["skip"](x, sigma))
            if float(sigma[0]) in skipping
            else v
        )

    states = {str(step.number): step.x for step in flow.euler(velocity, original["in/noise"], sigmas)}
    expected = original["out/euler_slg_trajectory"]
    assert torch.equal(expected[:1], original["in/noise"])
    agree(states, {str(i): expected[i + 1 : i + 2] for i in range(config["steps"])}, 2e-6)


def test_mistaken_guidance_would_show(diffusers, reference, error) -> None:
    """The branches exchanged, and guidance counted from the prompt instead of from the negative prompt."""
    cond, uncond = of_diffusers(diffusers, reference, torch.float32)
    scale, noise, sigmas = diffusers.config["guidance_scale"], diffusers["in/noise"], diffusers["in/sigmas"]
    for wrong in (guided(uncond, cond, scale), guided(cond, uncond, scale + 1)):
        step = next(flow.euler(wrong, noise, sigmas))
        assert error(step.x, diffusers["out/trajectory"][:1]) > 1e-3
