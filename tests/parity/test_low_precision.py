"""bfloat16 and float16 against the references' float64, within stated multiples of the unit roundoff.

A bound is stated in units of u, the largest relative error of one rounding: 2⁻⁸ in bfloat16, 2⁻¹¹ in
float16. Errors are relative to the largest magnitude. Measured on the CPU, in u:

    stage                 bfloat16    float16    bound
    MM-DiT velocity       2.2         3.0        4
    VAE mean              2.9         3.7        8
    VAE image             4.9         4.4        8
    CLIP context          1.5         1.4        3
    CLIP pooled           1.4         1.1        3
    T5                    1.6         1.2        3
    5 guided steps        3.8         -          8
"""

import pytest
import torch
from torch import Tensor, nn

import flow
from mmdit import MMDiT, MMDiTConfig
from mmdit.blocks import QKNorm
from sd35.verify.sinusoids import Sinusoids, stand_in
from textenc import CLIP, T5, CLIPConfig, T5Config
from vae import VAE, VAEConfig

UNIT = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


@pytest.fixture(params=UNIT, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def shapes_of(file) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in file.weights().items()}


def loaded(model: nn.Module, file, dtype: torch.dtype):
    model.load_state_dict(file.weights())
    return model.to(dtype).eval()


def transformer(file, dtype: torch.dtype, sinusoids: Sinusoids) -> MMDiT:
    config = MMDiTConfig.from_shapes(shapes_of(file), num_heads=file.config["sizes"]["num_heads"])
    model = loaded(MMDiT(config), file, dtype)
    stand_in(model.t_embedder.mlp, sinusoids)
    return model


@pytest.fixture
def within(error):
    """Check an error against a bound in units of u; that it is not smaller shows the dtype used."""

    def check(actual: Tensor, expected: Tensor, dtype: torch.dtype, bound: float) -> None:
        units = error(actual, expected) / UNIT[dtype]
        assert 0.05 < units <= bound, f"{units:.2f} units of roundoff, bound {bound}"

    return check


@pytest.mark.parametrize("name", ["mmdit_qknorm_dual", "mmdit_plain"])
def test_velocity(name: str, dtype: torch.dtype, reference, within, error) -> None:
    """Within the bound, and no farther from float64 than diffusers is in the same dtype."""
    file = reference(name)
    model = transformer(file, dtype, file.sinusoids)
    actual = model(*(file[f"in/{part}"] for part in ("latents", "sigma", "context", "pooled")))
    assert actual.dtype == torch.float32  # that of the latents; the rounding happens inside
    expected = file["out64/velocity"]
    within(actual, expected, dtype, 4)
    theirs = error(file["out_bf16/velocity" if dtype == torch.bfloat16 else "out_fp16/velocity"], expected)
    assert error(actual, expected) < 1.5 * theirs


def test_autoencoder(dtype: torch.dtype, reference, within) -> None:
    file = reference("vae")
    model = loaded(VAE(VAEConfig.from_shapes(shapes_of(file))), file, dtype)
    within(model.moments(file["in/image"])[0], file["out64/mean"], dtype, 8)
    within(model.decode(file["in/latents"]), file["out64/decoded"], dtype, 8)


@pytest.mark.parametrize(("name", "activation"), [("clip_l", "quick_gelu"), ("clip_g", "gelu")])
def test_clip(name: str, activation, dtype: torch.dtype, reference, within) -> None:
    file = reference(name)
    config = CLIPConfig.from_shapes(shapes_of(file), activation=activation, num_heads=2)
    output = loaded(CLIP(config), file, dtype)(file["in/ids"])
    assert output.penultimate.dtype == dtype
    within(output.penultimate, file["out64/penultimate"], dtype, 3)
    within(output.pooled, file["out64/pooled"], dtype, 3)


def test_t5(dtype: torch.dtype, reference, within) -> None:
    file = reference("t5")
    output = loaded(T5(T5Config.from_shapes(shapes_of(file))), file, dtype)(file["in/ids"])
    assert output.dtype == dtype
    within(output, file["out64/last"], dtype, 3)


def test_trajectory(reference, within) -> None:
    """The state and the noise level stay in float32 while the model computes in bfloat16."""
    file, dtype = reference("trajectory"), torch.bfloat16
    model = transformer(reference("mmdit_qknorm_dual"), dtype, file.sinusoids)
    context, pooled = file["out/context"], file["out/pooled"]

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        assert (x.dtype, sigma.dtype) == (torch.float32, torch.float32)
        both = model(x.repeat(2, 1, 1, 1), sigma.expand(2), context, pooled[:2])
        return flow.guide(*both.chunk(2), file.config["guidance_scale"])

    latents = flow.solve(velocity, file["in/noise"], file["in/sigmas"])
    assert latents.dtype == torch.float32
    within(latents, file["out64/trajectory"][-1:], dtype, 8)


def test_qk_norm_does_not_overflow(golden, error) -> None:
    """Past 255 the original's RMS norm answers in plain float16 with zeros; diffusers' and ours do not."""
    file = golden("tables")
    norm = QKNorm(64).half()
    norm.weight.data = file["rmsnorm/weight"].half()
    big = file["rmsnorm/x_big_fp16"]
    ours = norm(big[None, None])[0, 0]
    assert not file["rmsnorm/official_fp16_big_result(overflows)"].any()
    assert error(ours, file["ref_diffusers/rmsnorm_fp16_big_result"]) < 2 * UNIT[torch.float16]
