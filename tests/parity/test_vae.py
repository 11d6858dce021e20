"""The autoencoder, stage by stage, against diffusers and against the original implementation.

In float32 the order of sums decides more here than elsewhere: thirty convolutions follow one another, and
the machine's convolution routine picks the order. The two references differ from each other by 1.5e-6 of
the largest magnitude and this project from them by 1.8e-6 at most, hence a limit of its own.
"""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from vae import SCALE, SHIFT, VAE, VAEConfig
from vae.image import to_tensor, to_uint8
from vae.model import posterior_sample

LIMITS = {torch.float32: 4e-6, torch.float64: 1e-12}


def build(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> VAE:
    model = VAE(VAEConfig.from_shapes({name: tensor.shape for name, tensor in weights.items()}))
    model.load_state_dict(weights)
    return model.to(dtype).eval()


def everything(model: VAE, file) -> dict[str, Tensor]:
    """Both directions at once: the names of diffusers' outputs."""
    dtype = model.encoder.conv_in.weight.dtype
    image = file["in/image"].to(dtype)
    mean, logvar = model.moments(image)
    decoded = model.decode(file["in/latents"].to(dtype))
    return {"mean": mean, "logvar": logvar, "latents": model.encode(image), "decoded": decoded}


@pytest.mark.parametrize("dtype", LIMITS)
def test_every_stage_as_in_diffusers(dtype: torch.dtype, reference, tapped, agree) -> None:
    limit = LIMITS[dtype]
    file = reference("vae")
    model, expected = build(file.weights(), dtype), file.under("act64/")
    with tapped(model, expected) as stages:
        outputs = everything(model, file)
    assert len(expected) == 2 * (4 + 3 + 1)
    agree(stages, expected, limit)
    agree(outputs, file.under("out64/" if dtype == torch.float64 else "out/"), limit)


def test_sizes_are_read_off_the_shapes(reference) -> None:
    file = reference("vae")
    config, sizes = build(file.weights()).config, file.config["sizes"]
    assert (list(config.channels), config.num_res_blocks) == (sizes["channels"], sizes["num_res_blocks"])


GOLDEN_STAGES = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.down0.downsample": "encoder.down.0",
    "encoder.down2.downsample": "encoder.down.2",
    "encoder.down3.block1": "encoder.down.3",
    "encoder.mid1": "encoder.mid.block_1",
    "encoder.attn": "encoder.mid.attn_1",
    "encoder.mid2": "encoder.mid.block_2",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.mid1": "decoder.mid.block_1",
    "decoder.attn": "decoder.mid.attn_1",
    "decoder.mid2": "decoder.mid.block_2",
    "decoder.up3.block2": "decoder.up.3.block.2",
    "decoder.up3.upsample": "decoder.up.3",
    "decoder.up2.block2": "decoder.up.2.block.2",
}


@pytest.fixture
def original(golden):
    return golden("vae")


def test_every_stage_as_in_the_original(original, tapped, agree) -> None:
    model = build(original.weights("first_stage_model."))
    with tapped(model, GOLDEN_STAGES.values()) as stages:
        model.encode(original["in/image"])
        model.decode(original["in/latent_model_space"])
    agree(
        {stage: stages[path] for stage, path in GOLDEN_STAGES.items()},
        original.under("act/"),
        LIMITS[torch.float32],
    )


@pytest.mark.parametrize("dtype", LIMITS)
def test_moments_and_image_as_in_the_original(dtype: torch.dtype, original, agree) -> None:
    limit = LIMITS[dtype]
    model = build(original.weights("first_stage_model."), dtype)
    image = original["in/image"].to(dtype)
    mean, logvar = model.moments(image)
    if dtype == torch.float64:  # the original's latents were unscaled in float32 before this run
        decoded = model.decoder(original["in/latent_vae_space"].to(dtype))
        agree(
            {"moments": torch.cat([mean, logvar], dim=1), "decoded": decoded}, original.under("out64/"), limit
        )
        return
    decoded = model.decode(original["in/latent_model_space"])
    sample = posterior_sample(mean, logvar, original["in/sample_noise"])
    actual = {"mean": mean, "logvar_clamped": logvar, "sample": sample, "decoded": decoded}
    actual |= {"mean_process_in": model.encode(image), "sample_process_in": (sample - SHIFT) * SCALE}
    agree(actual, {name: original[f"out/{name}"] for name in actual}, limit)


def test_pixels_in(original) -> None:
    """Eight-bit pictures become the image both references encode, to the last bit but one."""
    picture = original["in/image_uint8"][0].movedim(0, 2).numpy()
    assert (to_tensor(picture) - original["in/image"]).abs().max() <= 2**-23


def test_pixels_out_by_name(original) -> None:
    """The original truncates, diffusers rounds: 40 % of the values differ, and each preset is exact."""
    decoded = original["out/decoded"]
    truncated, rounded = to_uint8(decoded, "reference"), to_uint8(decoded, "diffusers")
    assert torch.equal(truncated, original["out/decoded_uint8_official_truncate"])
    assert torch.equal(rounded, original["ref_diffusers/decoded_uint8_round"])
    assert (truncated != rounded).float().mean() > 0.3


@pytest.mark.parametrize("norm_eps", [1e-5], ids=["torch's default eps of group norm"])
def test_mistaken_eps_would_show(norm_eps: float, reference, error) -> None:
    file = reference("vae")
    model = build(file.weights())
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = norm_eps
    outputs = everything(model, file)
    assert min(error(outputs[name], file[f"out/{name}"]) for name in ("mean", "decoded")) > 1e-5


def test_mistaken_padding_would_show(reference, error) -> None:
    """A stride-2 convolution padded on both sides, as torch would, instead of right and bottom."""
    file = reference("vae")
    model = build(file.weights())
    for level in list(model.encoder.down)[:-1]:
        level.downsample.forward = lambda x, conv=level.downsample.conv: torch.nn.functional.conv2d(
            x, conv.weight, conv.bias, stride=2, padding=1
        )
    assert error(everything(model, file)["mean"], file["out/mean"]) > 1e-2


def test_mistaken_shift_would_show(reference, error) -> None:
    """The shift applied before the scale is undone."""
    file = reference("vae")
    model = build(file.weights())
    latents = file["in/latents"] + SHIFT - SHIFT * SCALE  # (z + SHIFT) / SCALE, seen through decode
    assert error(model.decode(latents), file["out/decoded"]) > 1e-3
