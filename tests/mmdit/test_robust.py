"""Numbers in another form, layers of another kind, another default dtype."""

from collections.abc import Iterator

import pytest
import torch

from mmdit import ControlNet, ControlNetConfig


@pytest.fixture(params=[torch.bfloat16, torch.float64], ids=str)
def other_default(request) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def control(drawn) -> ControlNet:
    return drawn(ControlNet(ControlNetConfig(dim=64, depth=2, num_heads=2, pooled_dim=12))).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_quantised_layers(dtype, build, control, inputs, in_eight_bits):
    model = build(dtype=dtype)
    expected = model(**inputs)
    net = control.to(dtype)
    given = inputs["latents"], inputs["sigma"], inputs["pooled"], inputs["latents"]
    residuals = net(model, *given)
    in_eight_bits(model)
    velocity = model(**inputs)
    assert model.dtype == dtype
    assert 0 < (velocity - expected).abs().max() < 0.1 * expected.abs().max()
    in_eight_bits(net)
    for actual, before in zip(net(model, *given), residuals, strict=True):
        assert actual.dtype == dtype
        assert (actual - before).abs().max() < 0.1 * before.abs().max()


def test_the_default_dtype_changes_nothing(other_default, build, control, inputs):
    torch.set_default_dtype(torch.float32)
    model, given = build(), (inputs["latents"], 0.7, inputs["pooled"], inputs["latents"])
    net = control.float()
    expected, residuals = model(**inputs | {"sigma": 0.7}), net(model, *given)
    torch.set_default_dtype(other_default)
    assert torch.equal(model(**inputs | {"sigma": 0.7}), expected)
    assert all(torch.equal(a, b) for a, b in zip(net(model, *given), residuals, strict=True))


@pytest.mark.parametrize("sigma", [0.7, torch.tensor(0.7), torch.tensor(0.7, dtype=torch.float64)], ids=repr)
def test_one_noise_level_for_all(sigma, build, control, inputs):
    model = build()
    each = inputs | {"sigma": torch.tensor([0.7, 0.7])}
    torch.testing.assert_close(model(**inputs | {"sigma": sigma}), model(**each), rtol=1e-5, atol=1e-5)
    given = (inputs["pooled"], inputs["latents"])
    for actual, expected in zip(
        control(model, inputs["latents"], sigma, *given),
        control(model, inputs["latents"], each["sigma"], *given),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "sigma", [500.0, -0.1, float("nan"), torch.tensor([0.5, 993.0]), torch.tensor(2)], ids=repr
)
def test_a_timestep_is_no_noise_level(sigma, build, control, inputs):
    model = build()
    with pytest.raises(ValueError, match="not the timestep"):
        model(**inputs | {"sigma": sigma})
    with pytest.raises(ValueError, match="not the timestep"):
        control(model, inputs["latents"], sigma, inputs["pooled"], inputs["latents"])
