"""Every stage against activations of the original implementation (shared/reference, skipped without it)."""

import json

import pytest
import torch

from vae import SCALE, SHIFT, VAE, VAEConfig
from vae.image import to_tensor, to_uint8
from vae.model import posterior_sample

ENCODER = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.down.0.downsample": "encoder.down0.downsample",
    "encoder.down.2.downsample": "encoder.down2.downsample",
    "encoder.down.3.block.1": "encoder.down3.block1",
    "encoder.mid.block_1": "encoder.mid1",
    "encoder.mid.attn_1": "encoder.attn",
    "encoder.mid.block_2": "encoder.mid2",
}
DECODER = {
    "decoder.conv_in": "decoder.conv_in",
    "decoder.mid.block_1": "decoder.mid1",
    "decoder.mid.attn_1": "decoder.attn",
    "decoder.mid.block_2": "decoder.mid2",
    "decoder.up.3.block.2": "decoder.up3.block2",
    "decoder.up.3.upsample": "decoder.up3.upsample",
    "decoder.up.2.block.2": "decoder.up2.block2",
}


def error(ours, reference) -> float:
    """Largest difference, relative to the largest magnitude."""
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def run_with_taps(vae: VAE, paths, call):
    taps = {}
    handles = [
        vae.get_submodule(path).register_forward_hook(lambda _, __, out, path=path: taps.update({path: out}))
        for path in paths
    ]
    call()
    for handle in handles:
        handle.remove()
    return taps


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_stage_in_float32(golden, golden_vae, layout):
    vae = golden_vae().to(memory_format=layout)
    stages = {**ENCODER, **DECODER}

    def both():
        vae.moments(golden["in/image"])
        vae.decode(golden["in/latent_model_space"])

    taps = run_with_taps(vae, stages, both)
    errors = {path: error(taps[path], golden[f"act/{name}"]) for path, name in stages.items()}
    assert max(errors.values()) < 2e-6, errors


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_in_float32(golden, golden_vae, layout):
    vae = golden_vae().to(memory_format=layout)
    mean, logvar = vae.moments(golden["in/image"])
    assert error(torch.cat([mean, logvar], 1), golden["out/moments"]) < 2e-6
    assert error(mean, golden["out/mean"]) < 2e-6
    assert error(logvar, golden["out/logvar_clamped"]) < 2e-6
    assert error(vae.encode(golden["in/image"]), golden["out/mean_process_in"]) < 2e-6
    # 35 convolutions deep, the order of summation shows: the two references are 1.5e-6 apart themselves.
    assert error(vae.decode(golden["in/latent_model_space"]), golden["out/decoded"]) < 4e-6


def test_results_in_float64(golden, golden_vae):
    vae = golden_vae(torch.float64)
    moments = torch.cat(vae.moments(golden["in/image"].double()), 1)
    assert error(moments, golden["out64/moments"]) < 1e-12
    # The stored float64 run began with latents unscaled in float32, so it is entered there.
    assert error(vae.decoder(golden["in/latent_vae_space"].double()), golden["out64/decoded"]) < 1e-12


def test_sample(golden):
    drawn = posterior_sample(golden["out/mean"], golden["out/logvar_clamped"], golden["in/sample_noise"])
    # exp, by two libraries that err by a unit in the last place each; then the rounding of three operations
    for actual, name in ((drawn, "sample"), ((drawn - SHIFT) * SCALE, "sample_process_in")):
        torch.testing.assert_close(actual, golden[f"out/{name}"], rtol=6e-7, atol=1e-6)
    unscaled = golden["in/latent_model_space"] / SCALE + SHIFT
    assert error(unscaled, golden["in/latent_vae_space"]) < 2e-7


def test_pictures_of_both_references(golden):
    decoded = golden["out/decoded"]
    assert torch.equal(to_uint8(decoded, "reference"), golden["out/decoded_uint8_official_truncate"])
    assert torch.equal(to_uint8(decoded, "diffusers"), golden["ref_diffusers/decoded_uint8_round"])
    picture = golden["in/image_uint8"][0].movedim(0, 2).numpy()
    assert torch.equal(to_tensor(picture), golden["in/image"])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_low_precision_stays_within_its_stated_bound(golden, golden_vae, dtype, bound):
    vae = golden_vae(dtype)
    assert error(torch.cat(vae.moments(golden["in/image"]), 1), golden["out/moments"]) < bound
    assert error(vae.decode(golden["in/latent_model_space"]), golden["out/decoded"]) < bound


def test_official_size_is_read_off_the_manifest_and_fits_it(shared_reference):
    prefix = "first_stage_model."
    manifest = json.loads((shared_reference / "manifests" / "sd3.5_medium.safetensors.json").read_text())
    shapes = {
        name.removeprefix(prefix): tuple(entry[0])
        for name, entry in manifest["tensors"].items()
        if name.startswith(prefix)
    }
    config = VAEConfig.from_shapes(shapes)
    assert config == VAEConfig(channels=(128, 256, 512, 512), num_res_blocks=2, latent_channels=16)
    with torch.device("meta"):
        vae = VAE(config)
    assert {name: tuple(value.shape) for name, value in vae.state_dict().items()} == shapes
