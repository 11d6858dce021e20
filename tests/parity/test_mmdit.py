"""The transformer, block by block, against diffusers and against the original implementation.

Diffusers' RMSNorm takes its mean square in float32 in every run. Its float64 activations here were made
with that lifted; `test_float32_statistics` says what it costs to leave it. The original implementation
needs no such care. Diffusers attends over [x, context] where the original and this project attend over
[context, x]: the same sums in another order, within the limits below.
"""

from collections.abc import Callable
from math import log

import pytest
import torch
from einops import rearrange
from torch import Tensor

from mmdit import MMDiT, MMDiTConfig, position_table, timestep_embedding
from sd35.verify.sinusoids import Sinusoids, difference, reach, stand_in

MODELS = ("mmdit_qknorm_dual", "mmdit_plain")


def build(
    weights: dict[str, Tensor],
    num_heads: int,
    dtype: torch.dtype = torch.float32,
    sinusoids: Sinusoids | None = None,
) -> MMDiT:
    """A model that reads these sinusoids in the place of its own; its own where none are given."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    model = MMDiT(MMDiTConfig.from_shapes(shapes, num_heads=num_heads))
    model.load_state_dict(weights)
    if sinusoids is not None:
        stand_in(model.t_embedder.mlp, sinusoids)
    return model.to(dtype).eval()


def velocity(
    model: MMDiT, file, latents: str = "in/latents", sigma: Tensor | None = None, **kwargs
) -> Tensor:
    dtype = model.pos_embed.dtype
    sigma = file["in/sigma"] if sigma is None else sigma
    inputs = (file[name].to(dtype) for name in ("in/context", "in/pooled"))
    return model(file[latents].to(dtype), sigma, *inputs, **kwargs)


@pytest.fixture(params=MODELS)
def diffusers(request: pytest.FixtureRequest, reference):
    return reference(request.param)


def model_of(file, dtype: torch.dtype = torch.float32) -> MMDiT:
    return build(file.weights(), file.config["sizes"]["num_heads"], dtype, file.sinusoids)


def test_sizes_are_read_off_the_shapes(diffusers) -> None:
    sizes, config = diffusers.config["sizes"], model_of(diffusers).config
    assert (config.dim, config.depth, config.qk_norm) == (sizes["dim"], sizes["depth"], sizes["qk_norm"])
    assert (config.dual_blocks, config.pos_embed_size) == (
        tuple(sizes["dual_blocks"]),
        sizes["pos_embed_size"],
    )
    assert (config.context_dim, config.pooled_dim) == (sizes["context_dim"], sizes["pooled_dim"])


def test_every_block_as_in_diffusers(diffusers, precision, tapped, agree) -> None:
    dtype, limit = precision
    model, expected = model_of(diffusers, dtype), diffusers.under("act64/")
    paths = {stage.removesuffix(".x").removesuffix(".context") for stage in expected}
    with tapped(model, paths) as stages:
        velocity(model, diffusers)
    assert {f"joint_blocks.{i}.x" for i in range(model.config.depth)} <= expected.keys()
    agree(stages, expected, limit)


def test_velocity_as_in_diffusers(diffusers, precision, agree) -> None:
    dtype, limit = precision
    model = model_of(diffusers, dtype)
    actual = {
        "velocity": velocity(model, diffusers),
        "velocity_oddcrop": velocity(model, diffusers, "in/latents_oddcrop"),
        "velocity_skip_layers": velocity(model, diffusers, skip_layers=(model.config.depth - 2,)),
    }
    agree(actual, diffusers.under("out64/" if dtype == torch.float64 else "out/"), limit)


def test_sinusoids_as_in_diffusers(diffusers) -> None:
    """Each within what libraries of vector functions, and a timestep near 1000, can make of it."""
    stored = diffusers.sinusoids
    apart, allowed = difference(timestep_embedding(stored.sigma), stored)
    assert (apart <= allowed).all()
    assert allowed.max() < 4e-4
    assert allowed[:, -1].max() < 3e-7  # a slow one


def test_velocity_from_sigma_as_in_diffusers(diffusers, precision, error) -> None:
    """From this processor's own sinusoids: no farther than what they differ by can move it."""
    dtype, limit = precision
    stored = diffusers.sinusoids
    model = build(diffusers.weights(), diffusers.config["sizes"]["num_heads"], dtype)
    moved, _ = difference(timestep_embedding(stored.sigma), stored)
    far = reach(model.t_embedder.mlp, stored, moved, lambda: velocity(model, diffusers))
    assert error(velocity(model, diffusers), diffusers["out64/velocity"]) <= limit + far
    assert far < 1e-4


@pytest.mark.parametrize("units", [12, -12])
def test_mistaken_frequency_would_show(units: int, diffusers) -> None:
    """One frequency off by four times as many units in the last place as libraries differ by."""
    stored = diffusers.sinusoids
    omega = torch.exp(-log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    for column in (1, 20, 40):
        other = (omega[column].view(torch.int32) + units).view(torch.float32)
        computed = stored.values.clone()
        angles = (1000 * stored.sigma[:1].double()).float() * other
        computed[:1, column], computed[:1, column + 128] = angles.cos(), angles.sin()
        apart, allowed = difference(computed, stored)
        assert (apart > allowed).any(), column
        assert stored.rows(computed)[0] == -1, "it must not be exchanged for the right one"


def test_float32_statistics(reference, error) -> None:
    """Diffusers as it is departs from float64 through its RMS statistics alone, by 1e-8; ours does not."""
    file = reference("mmdit_qknorm_dual")
    left_in = error(file["out64_float32_statistics/velocity"], file["out64/velocity"])
    ours = error(velocity(model_of(file, torch.float64), file), file["out64/velocity"])
    assert 1e-9 < left_in < 1e-7
    assert ours < 1e-4 * left_in


GOLDEN_STAGES = {
    "x_embedder": "x_embedder",
    "t_embedder": "t_embedder",
    "y_embedder": "y_embedder",
    "context_embedder": "context_embedder",
    "final_layer": "final_layer",
    "block0.joint_attn.out": "joint_blocks.0.attention",
}


def golden_inputs(model: MMDiT, file, latents: str = "in/x") -> tuple[Tensor, ...]:
    dtype = model.pos_embed.dtype
    sigma = file["in/timestep"].double() / 1000
    return file[latents].to(dtype), sigma, file["in/context"].to(dtype), file["in/y"].to(dtype)


@pytest.fixture
def golden_model(original_sinusoids) -> Callable[..., MMDiT]:
    def of(file, dtype: torch.dtype = torch.float32) -> MMDiT:
        sinusoids = original_sinusoids(file["in/timestep"].double() / 1000)
        return build(file.weights("model.diffusion_model."), file.config["num_heads"], dtype, sinusoids)

    return of


@pytest.mark.parametrize("name", MODELS)
def test_every_block_as_in_the_original(name: str, golden, golden_model, tapped, agree) -> None:
    file = golden(name)
    model, expected = golden_model(file), file.under("act/")
    blocks = [f"joint_blocks.{i}" for i in range(model.config.depth)]
    qkv: list[Tensor] = []
    model.joint_blocks[0].attention.register_forward_pre_hook(lambda module, inputs: qkv.extend(inputs))
    with tapped(model, [*GOLDEN_STAGES.values(), *blocks]) as stages:
        model(*golden_inputs(model, file))
    actual = {stage: stages[path] for stage, path in GOLDEN_STAGES.items()}
    streams = {stage: y for stage, y in stages.items() if stage.endswith((".x", ".context"))}
    actual |= {stage.replace("joint_blocks.", "block"): y for stage, y in streams.items()}
    actual["c_mod"] = stages["t_embedder"] + stages["y_embedder"]
    actual |= {
        f"block0.joint_attn.{n}": rearrange(y, "b h l k -> b l (h k)")
        for n, y in zip("qkv", qkv, strict=True)
    }
    expected["block0.joint_attn.v"] = expected["block0.joint_attn.v"].flatten(2)
    agree(actual, {stage: y for stage, y in expected.items() if stage in actual}, 2e-6)
    assert len(actual) == len(GOLDEN_STAGES) + 2 * len(blocks) - 1 + 1 + 3


def test_second_attention_as_in_the_original(golden, golden_model, tapped, agree) -> None:
    file = golden("mmdit_qknorm_dual")
    model, attention = golden_model(file), "joint_blocks.0.x_block.attn2"
    names = {"q": "ln_q", "k": "ln_k", "qkv": "qkv"}
    inputs: list[Tensor] = []
    model.get_submodule(f"{attention}.proj").register_forward_pre_hook(
        lambda module, args: inputs.extend(args)
    )
    with tapped(model, [f"{attention}.{path}" for path in names.values()]) as stages:
        model(*golden_inputs(model, file))
    actual = {n: rearrange(stages[f"{attention}.ln_{n}"], "b h l k -> b l (h k)") for n in "qk"}
    actual |= {"v": stages[f"{attention}.qkv"].chunk(3, dim=-1)[2].unflatten(-1, (2, 64)), "out": inputs[0]}
    agree(actual, file.under("act/block0.attn2."), 2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_velocity_as_in_the_original(name: str, precision, golden, golden_model, tapped, agree) -> None:
    dtype, limit = precision
    file = golden(name)
    model = golden_model(file, dtype)
    blocks = [f"joint_blocks.{i}" for i in range(model.config.depth)]
    with tapped(model, blocks) as stages:
        actual = {"velocity": model(*golden_inputs(model, file))}
    if dtype == torch.float64:
        agree(actual, file.under("out64/"), limit)
        agree(
            stages,
            {stage.replace("block", "joint_blocks."): y for stage, y in file.under("act64/").items()},
            limit,
        )
        return
    actual["velocity_oddcrop"] = model(*golden_inputs(model, file, "in/x_oddcrop"))
    if skip := file.config.get("skip_layers"):
        actual["velocity_skip_layers"] = model(*golden_inputs(model, file), skip_layers=skip)
    agree(actual, file.under("out/"), limit)


def test_computed_position_table(golden, reference, error) -> None:
    """The formula gives what diffusers stores in float16 here, and the original's table in float64."""
    file = reference("mmdit_qknorm_dual")
    table = position_table(64, 8, base_size=4)
    assert torch.equal(table.half(), file["weights/pos_embed"])
    file = golden("tables")
    sizes = file.config
    table = position_table(sizes["embed_dim"], sizes["grid"], base_size=sizes["base_size"])
    assert error(table[0], file["pos_embed/official_scaling_factor_grid_over_base_fp64"]) < 1e-7


def swap(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Read the two modulation vectors of these layers in the other order, as in diffusers' files."""

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        both = [f"{name}.adaLN_modulation.1.{leaf}" for name in names for leaf in ("weight", "bias")]
        return weights | {name: torch.cat(weights[name].chunk(2)[::-1]) for name in both}

    return change


def transposed_positions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows and columns of the position table exchanged."""
    return weights | {"pos_embed": rearrange(weights["pos_embed"], "1 (h w) d -> 1 (w h) d", h=8)}


def channels_first(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last layer's features read with the channel slowest, as in the patch embedding."""
    names = ("final_layer.linear.weight", "final_layer.linear.bias")
    return weights | {name: rearrange(weights[name], "(c p) ... -> (p c) ...", c=16) for name in names}


def exchanged_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Norms of query and key exchanged, in one block."""
    q, k = (f"joint_blocks.1.x_block.attn.ln_{part}.weight" for part in "qk")
    return weights | {q: weights[k], k: weights[q]}


WRONG_WEIGHTS = {
    "final layer's shift and scale": (MODELS, swap("final_layer")),
    "last context block's shift and scale": (MODELS[:1], swap("joint_blocks.3.context_block")),
    "position table transposed": (MODELS, transposed_positions),
    "unpatchify order": (MODELS, channels_first),
    "query and key norms exchanged": (MODELS[:1], exchanged_norms),
}


@pytest.mark.parametrize(
    ("name", "mistake"), [(n, m) for m, (names, _) in WRONG_WEIGHTS.items() for n in names]
)
def test_mistaken_weights_would_show(name: str, mistake: str, reference, error) -> None:
    """Each of these is far outside the limits above, so that none can hide in them."""
    file = reference(name)
    weights = WRONG_WEIGHTS[mistake][1](file.weights())
    model = build(weights, file.config["sizes"]["num_heads"])
    assert error(velocity(model, file), file["out/velocity"]) > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda sigma: (1000 * sigma).floor() / 1000, id="timestep truncated to an integer"),
        pytest.param(lambda sigma: (1000 * sigma).half().double() / 1000, id="timestep rounded to float16"),
        pytest.param(lambda sigma: sigma / 1000, id="sigma in the timestep's place"),
    ],
)
def test_mistaken_timestep_would_show(wrong, diffusers, error) -> None:
    actual = velocity(model_of(diffusers), diffusers, sigma=wrong(diffusers["in/sigma"]))
    assert error(actual, diffusers["out/velocity"]) > 1e-3
