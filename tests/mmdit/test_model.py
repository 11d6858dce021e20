import pytest
import torch

from mmdit import MMDiT, MMDiTConfig, spread
from mmdit.model import unpatchify


def test_velocity_has_the_latents_shape(build, inputs):
    velocity = build()(**inputs)
    assert velocity.shape == (2, 16, 4, 6)
    assert velocity.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(2, 2), (10, 4), (6, 10)])
def test_any_size_up_to_the_table(height, width, build, inputs):
    latents = torch.ones(2, 16, height, width)
    assert build()(**inputs | {"latents": latents}).shape == latents.shape


def test_one_sample_does_not_see_another(build, inputs):
    model = build(dtype=torch.float64)
    inputs = {name: tensor.double() for name, tensor in inputs.items()}
    both = model(**inputs)
    for i in range(2):
        alone = model(**{name: tensor[i : i + 1] for name, tensor in inputs.items()})
        torch.testing.assert_close(alone[0], both[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["latents", "sigma", "context", "pooled"])
def test_every_input_matters(name, build, inputs):
    model = build()
    changed = inputs | {name: inputs[name] * 0.9}
    assert (model(**inputs) - model(**changed)).abs().max() > 1e-3


def test_position_of_a_token_matters(build, inputs):
    """Without positions, latents shifted by a patch would give the velocity shifted by a patch."""
    model = build()
    rolled = model(**inputs | {"latents": inputs["latents"].roll(2, dims=-1)}).roll(-2, dims=-1)
    assert (rolled - model(**inputs)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_velocity_has_the_latents_dtype(dtype, build, inputs):
    """A sampler keeps its state in float32 whatever the model computes in."""
    model = build(dtype=dtype)
    velocity = model(**inputs)
    assert velocity.dtype == torch.float32
    expected = build()(**inputs)
    assert (velocity - expected).abs().max() < 0.1 * expected.abs().max()
    assert model(**inputs | {"latents": inputs["latents"].to(dtype)}).dtype == dtype


def test_sigma_keeps_its_precision_in_a_low_precision_model(build, inputs):
    """These two are one number in bfloat16."""
    model = build(dtype=torch.bfloat16)
    near, far = (model(**inputs | {"sigma": torch.full((2,), sigma)}) for sigma in (0.8985, 0.9))
    assert torch.tensor(0.8985).bfloat16() == torch.tensor(0.9).bfloat16()
    assert not torch.equal(near, far)


WRONG = {
    "latents of three axes": ("latents", (16, 4, 6), r"latents must be \(B, 16, h, w\)"),
    "channels": ("latents", (2, 4, 4, 6), r"got \(2, 4, 4, 6\)"),
    "odd height": ("latents", (2, 16, 5, 6), "divisible by 2"),
    "beyond the table": ("latents", (2, 16, 12, 4), "6 x 2 were asked for"),
    "sigma of another batch": (
        "sigma",
        (1,),
        r"sigma must be one noise level a sample, \(2,\), or one for all, got \(1,\)",
    ),
    "context width": ("context", (2, 4, 25), r"context must be \(2, M, 24\), got \(2, 4, 25\)"),
    "context of another batch": ("context", (1, 4, 24), "context must be"),
    "pooled width": ("pooled", (2, 13), r"pooled must be \(2, 12\), got \(2, 13\)"),
}


@pytest.mark.parametrize(("name", "shape", "message"), WRONG.values(), ids=WRONG)
def test_shapes_that_do_not_fit(name, shape, message, build, inputs):
    with pytest.raises(ValueError, match=message):
        build()(**inputs | {name: torch.zeros(shape)})


@pytest.mark.parametrize("skipped", [[3], [-1], [0, 7]])
def test_skipping_a_layer_that_does_not_exist(skipped, build, inputs):
    with pytest.raises(ValueError, match="skip_layers must be in 0 to 2"):
        build()(**inputs, skip_layers=skipped)


def test_a_skipped_layer_is_as_if_it_were_not_there(build, inputs):
    model, shorter = build(depth=4), build(depth=2, dual_blocks=())
    skipped = model(**inputs, skip_layers=(0, 2))
    assert not torch.equal(skipped, model(**inputs))
    renamed = {f"joint_blocks.{new}.": f"joint_blocks.{old}." for new, old in enumerate((1, 3))}
    weights = model.state_dict()
    shorter.load_state_dict(
        {name: weights[renamed.get(name[:15], name[:15]) + name[15:]] for name in shorter.state_dict()}
    )
    assert torch.equal(skipped, shorter(**inputs))


def test_a_skipped_layer_takes_its_residual_along(build, inputs):
    model = build()
    residual = torch.ones(2, 6, 64)
    without = model(**inputs, skip_layers=[1])
    assert torch.equal(model(**inputs, residuals=[None, residual, None], skip_layers=[1]), without)
    assert not torch.equal(model(**inputs, residuals=[None, residual, None]), model(**inputs))


def test_the_last_layer_can_be_skipped(build, inputs):
    assert build()(**inputs, skip_layers=[2]).shape == inputs["latents"].shape


def test_residuals_are_added_after_their_blocks(build, inputs):
    """The same as a hook on each block that adds to its output."""
    model = build()
    residuals = [torch.full((2, 6, 64), 0.5 * i) for i in range(1, 4)]
    actual = model(**inputs, residuals=residuals)
    for block, residual in zip(model.joint_blocks, residuals, strict=True):
        block.register_forward_hook(lambda module, args, out, residual=residual: (out[0] + residual, out[1]))
    assert torch.equal(actual, model(**inputs))


def test_residuals_of_nothing_change_nothing(build, inputs):
    model = build()
    assert torch.equal(model(**inputs, residuals=[None] * 3), model(**inputs))
    assert torch.equal(model(**inputs, residuals=[torch.zeros(2, 6, 64)]), model(**inputs))


def test_fewer_residuals_are_spread(build, inputs):
    model = build()
    a, b = torch.ones(2, 6, 64), torch.full((2, 6, 64), -0.5)
    assert torch.equal(model(**inputs, residuals=[a, b]), model(**inputs, residuals=[a, a, b]))


def test_residuals_are_cast_to_the_model(build, inputs):
    """A ControlNet may run in float32 beside a low-precision model."""
    model = build(dtype=torch.bfloat16)
    residual = torch.linspace(-1, 1, 2 * 6 * 64).view(2, 6, 64)
    assert torch.equal(
        model(**inputs, residuals=[residual]), model(**inputs, residuals=[residual.bfloat16()])
    )


@pytest.mark.parametrize(("n", "depth"), [(19, 38), (12, 24), (6, 24), (24, 24), (1, 3)])
def test_residuals_spread_evenly(n, depth):
    residuals = [torch.tensor(i) for i in range(n)]
    each = depth // n
    expected = [i // each for i in range(depth)]
    assert [int(residual) for residual in spread(residuals, depth)] == expected
    *added, last = spread(residuals, depth, "diffusers")
    assert [int(residual) for residual in added] == expected[:-1]
    assert last is None


def test_a_spread_that_does_not_come_out_even_uses_every_residual():
    residuals = [torch.tensor(i) for i in range(5)]
    assert [int(residual) for residual in spread(residuals, 8)] == [0, 0, 1, 1, 2, 3, 3, 4]


@pytest.mark.parametrize("count", [0, 4])
def test_too_many_or_no_residuals(count, build, inputs):
    with pytest.raises(ValueError, match=f"residuals must be 1 to 3, one a block at most, got {count}"):
        build()(**inputs, residuals=[None] * count)


def test_an_unknown_rule():
    with pytest.raises(ValueError, match="'reference' or 'diffusers', got 'official'"):
        spread([torch.zeros(1)], 2, "official")  # pyright: ignore[reportArgumentType]


def test_unpatchify_lays_the_channel_fastest():
    tokens = torch.arange(2 * 3 * 8.0).view(1, 6, 8)  # 2 x 3 patches of 2 x 2 pixels of 2 channels
    latents = unpatchify(tokens, 2, 3, 2)
    for row in range(4):
        for column in range(6):
            token = tokens[0, row // 2 * 3 + column // 2]
            pixel = row % 2 * 2 + column % 2
            assert latents[0, :, row, column].tolist() == token[2 * pixel : 2 * pixel + 2].tolist()


def test_unpatchify_is_that_of_the_original(tables):
    tokens = tables["unpatchify/in_tokens(h=2,w=3,p=2,c=5)"]
    assert torch.equal(unpatchify(tokens, 2, 3, 2), tables["unpatchify/out"])


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (MMDiTConfig(dim=1536, depth=24, num_heads=24, pos_embed_size=192, qk_norm=False), 2_084_951_104),
        (
            MMDiTConfig(dim=1536, depth=24, num_heads=24, pos_embed_size=384, dual_blocks=tuple(range(13))),
            2_469_663_936,
        ),
        (MMDiTConfig(dim=2432, depth=38, num_heads=38, pos_embed_size=192), 8_146_280_768),
    ],
    ids=["sd3-medium", "sd3.5-medium", "sd3.5-large"],
)
def test_released_sizes_on_the_meta_device(config, parameters):
    """Built, and run, without a byte of weights; the numbers are those of the official files."""
    with torch.device("meta"):
        model = MMDiT(config)
        assert sum(tensor.numel() for tensor in model.state_dict().values()) == parameters
        velocity = model(
            torch.zeros(1, 16, 128, 128), torch.ones(1), torch.zeros(1, 333, 4096), torch.zeros(1, 2048)
        )
    assert velocity.shape == (1, 16, 128, 128)
