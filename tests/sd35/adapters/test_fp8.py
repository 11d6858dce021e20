"""Products in 8-bit floats: near what they stand for, in the right layers, refused where there are none."""

from typing import Any

import pytest
import torch
from torch import nn

import sd35
from sd35 import SettingsError
from sd35.adapters.fp8 import check_fp8, is_fp8, use_fp8
from sd35.found import find
from sd35.needs import needs_of
from weights.packed.linear import PackedLinear
from weights.packed.product import Fp8Linear, as_fp8
from weights.packed.write import rounded

BF16, CUDA = torch.bfloat16, torch.device("cuda")


def layer(dtype: torch.dtype = BF16) -> nn.Linear:
    made = nn.Linear(128, 48).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for one in made.parameters():
        one.normal_(generator=generator)
    return made.to(dtype)


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_a_product_is_that_of_rounded_rows(dtype) -> None:
    linear, x = layer(dtype), torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0, 0] = 0  # a row of zeros
    made = as_fp8(linear)
    own = x.flatten(0, 1).float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 448
    rows = (x.flatten(0, 1) / own).to(torch.float8_e4m3fn).float() * own
    expected = rows @ made.weight.T + linear.bias.float()
    found = made(x)
    assert (found.shape, found.dtype) == ((2, 5, 48), dtype)
    # a sum of 128 products in float32, rounded to bfloat16 and then to the dtype
    assert (found.flatten(0, 1).float() - expected).abs().max() <= 2**-8 * expected.abs().max()
    error = (found - linear(x)).float().norm() / linear(x).float().norm()
    assert 0.01 < error < 2**-4  # half a unit of 3 bits, at most, in each factor; independent, so less in all
    assert made(x.float()).dtype == torch.float32
    assert torch.equal(made(x.float()), nn.functional.linear(x.float(), made.weight, linear.bias.float()))


def test_what_is_stored_in_fp8_is_not_rounded_again() -> None:
    linear = layer()
    each = PackedLinear(rounded(linear.weight, "fp8"), bias=True)
    each.bias = linear.bias
    one = PackedLinear(rounded(linear.weight, "fp8"), bias=True)
    one.bias, one.scale = linear.bias, torch.tensor(0.5).view(torch.int32)
    for stored in (each, one):
        made = as_fp8(stored)
        assert made.packed is stored.packed
        assert torch.equal(made.weight, stored.weight)
    eight = PackedLinear(rounded(linear.weight, "int8"), bias=False)
    assert as_fp8(eight).bias is None
    assert (as_fp8(eight).weight - eight.weight).abs().max() <= 2**-4 * eight.weight.abs().max()


def test_the_blocks_of_a_model_take_their_products_so(model_folder) -> None:
    plain = sd35.load(model_folder, dtype=BF16)
    pipe = sd35.load(model_folder, dtype=BF16)
    use_fp8(pipe.mmdit)
    kinds = {path: type(one) for path, one in pipe.mmdit.named_modules() if "in_features" in vars(one)}
    for path, kind in kinds.items():
        inside = path.startswith("joint_blocks.") and "adaLN" not in path
        assert (kind is Fp8Linear) == inside, path
    options: dict[str, Any] = {"steps": 2, "seed": 1}
    drawn, expected = (one.generate("a", **options) for one in (pipe, plain))
    assert (drawn.settings.made_with["products"], expected.settings.made_with.get("products")) == (
        "fp8",
        None,
    )
    error = (drawn.latents - expected.latents).norm() / expected.latents.norm()
    assert 0 < error < 0.1
    assert not is_fp8(plain.mmdit)
    exact = pipe.invert(drawn.state(), method="naive", measure=False)  # float32, with the rounded weights
    assert exact.noise.isfinite().all()
    half, whole = (needs_of(find(model_folder), CUDA, BF16, fp8=fp8) for fp8 in (True, False))
    eights = sum(one.packed.numel() for one in pipe.mmdit.modules() if isinstance(one, Fp8Linear))
    assert whole.weights["mmdit"] - half.weights["mmdit"] == whole.blocks - half.blocks == eights


def test_fp8_is_refused_where_it_cannot_be(model_folder, monkeypatch) -> None:
    with pytest.raises(SettingsError, match=r"compute capability 8\.9 or more .* this is a cpu device"):
        sd35.load(model_folder, fp8=True)
    with pytest.raises(SettingsError, match="leave one of them out"):
        sd35.load(model_folder, fp8=True, unpack=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A10")
    with pytest.raises(SettingsError, match=r"this is A10, of compute capability 8\.6: leave it out"):
        check_fp8(CUDA, BF16)
    with pytest.raises(SettingsError, match="no effect in float32"):
        check_fp8(CUDA, torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    check_fp8(CUDA, torch.float16)
