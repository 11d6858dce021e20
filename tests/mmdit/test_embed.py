import math

import pytest
import torch

from mmdit import position_table, timestep_embedding
from mmdit.embed import Embedder, PatchEmbed, TimestepEmbedder, crop_positions
from sd35.verify.sinusoids import Sinusoids, difference


def test_patches_run_row_by_row():
    """Each token of this embedding is the upper left value of its patch."""
    embed = PatchEmbed(channels=1, dim=1, patch_size=2)
    embed.proj.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]])[None, None])
    embed.proj.bias.zero_()
    latents = torch.arange(24.0).view(1, 1, 4, 6)
    assert embed(latents).flatten().tolist() == [0, 2, 4, 12, 14, 16]


COORDINATE_ROUNDING = 2**-23
"""Both references round coordinates to float32 before all else; below 4, that is an error of so much."""


def test_position_table_is_that_of_the_original(tables):
    sizes = tables["config"]
    table = position_table(sizes["embed_dim"], sizes["grid"], base_size=sizes["base_size"])
    expected = tables["pos_embed/official_scaling_factor_grid_over_base_fp64"]
    torch.testing.assert_close(table[0], expected, rtol=0, atol=COORDINATE_ROUNDING)
    unscaled = position_table(sizes["embed_dim"], sizes["grid"])
    torch.testing.assert_close(unscaled[0], tables["pos_embed/official_no_scaling"], rtol=0, atol=1e-14)


def test_position_table_as_diffusers_stores_it(tables):
    sizes = tables["config"]
    table = position_table(sizes["embed_dim"], sizes["grid"], base_size=sizes["base_size"])
    limit = COORDINATE_ROUNDING + 2**-25  # it stores float32
    torch.testing.assert_close(table[0], tables["ref_diffusers/pos_embed"].double(), rtol=0, atol=limit)


def test_position_table_holds_the_column_before_the_row():
    table = position_table(8, 3).view(3, 3, 8)
    slow = 0.01  # the second of two frequencies, 10000^(-1/2)
    for row in range(3):
        for column in range(3):
            expected = [
                wave(frequency * place)
                for place in (column, row)
                for wave in (math.sin, math.cos)
                for frequency in (1, slow)
            ]
            assert table[row, column].tolist() == pytest.approx(expected, abs=1e-15)


def test_base_size_sets_the_step():
    """Every third place of a table of 12 over a base of 4 is a place of the table of 4."""
    fine = position_table(16, 12, base_size=4).view(12, 12, 16)
    assert torch.equal(fine[::3, ::3].flatten(0, 1), position_table(16, 4)[0])


@pytest.mark.parametrize(
    ("size", "height", "width", "top", "left"),
    [(8, 4, 2, 2, 3), (8, 3, 5, 2, 1), (11, 4, 6, 3, 2), (5, 5, 5, 0, 0), (384, 64, 96, 160, 144)],
)
def test_crop_is_centred_and_rounds_down(size, height, width, top, left):
    table = torch.arange(size * size).view(1, size * size, 1)
    rows, columns = torch.arange(top, top + height), torch.arange(left, left + width)
    expected = (rows[:, None] * size + columns).flatten()
    assert torch.equal(crop_positions(table, height, width)[0, :, 0], expected)


@pytest.mark.parametrize(("height", "width"), [(6, 4), (4, 6)])
def test_crop_beyond_the_table_is_an_error(height, width):
    with pytest.raises(ValueError, match=f"5 x 5 patches, and {height} x {width} were asked for"):
        crop_positions(torch.zeros(1, 25, 4), height, width)


def test_timestep_embedding_is_that_of_the_original(tables):
    """To what libraries of vector functions differ by: in the fifth digit, as the angles reach 1000."""
    stored = Sinusoids(tables["timestep/in"].double() / 1000, tables["timestep/embedding256"])
    apart, allowed = difference(timestep_embedding(stored.sigma), stored)
    assert (apart <= allowed).all()


def test_timestep_embedding_is_its_formula():
    sigma = torch.tensor([0.0, 0.0089286, 0.5, 1.0], dtype=torch.float64)
    omega = 10000 ** -(torch.arange(128, dtype=torch.float64) / 128)
    angles = 1000 * sigma[:, None] * omega
    expected = torch.cat([angles.cos(), angles.sin()], dim=-1)
    torch.testing.assert_close(timestep_embedding(sigma).double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_timestep_is_never_half_precision(dtype):
    sigma = torch.tensor([0.98738, 0.30078], dtype=dtype)
    assert torch.equal(timestep_embedding(sigma), timestep_embedding(sigma.float()))
    assert timestep_embedding(sigma).dtype == torch.float32


def test_timestep_is_never_an_integer():
    near = timestep_embedding(torch.tensor([0.5, 0.5004]))
    assert (near[0] - near[1]).abs().max() > 0.1


def test_low_precision_model_embeds_the_exact_sigma(drawn):
    embedder = drawn(TimestepEmbedder(32)).bfloat16()
    sigma = torch.tensor([0.98738, 0.98739])
    features = timestep_embedding(sigma).bfloat16()
    assert torch.equal(embedder(sigma), embedder.mlp(features))
    assert not torch.equal(features, timestep_embedding(sigma.bfloat16()).bfloat16())


def test_embedder_is_linear_silu_linear(drawn):
    embedder = drawn(Embedder(6, 8)).double()
    x = torch.linspace(-3, 3, 12, dtype=torch.float64).view(2, 6)
    first, last = embedder.mlp[0], embedder.mlp[2]
    hidden = x @ first.weight.T + first.bias
    expected = (hidden * hidden.sigmoid()) @ last.weight.T + last.bias
    torch.testing.assert_close(embedder(x), expected, rtol=1e-12, atol=1e-12)
