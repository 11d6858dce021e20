"""ControlNets and what they do to the velocity, against diffusers and the original implementation.

The two differ where the residuals go in. The original adds one after every block but those it skips;
diffusers adds none after the last block, and adds those of skipped blocks all the same.
"""

import pytest
import torch
from torch import Tensor

from mmdit import ControlNet, ControlNetConfig, MMDiT, MMDiTConfig, spread
from sd35.verify.sinusoids import Sinusoids, stand_in


def shapes_of(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def transformer(
    weights: dict[str, Tensor], num_heads: int, dtype: torch.dtype, sinusoids: Sinusoids
) -> MMDiT:
    model = MMDiT(MMDiTConfig.from_shapes(shapes_of(weights), num_heads=num_heads))
    model.load_state_dict(weights)
    stand_in(model.t_embedder.mlp, sinusoids)
    return model.to(dtype).eval()


def controlnet(
    weights: dict[str, Tensor], num_heads: int, dtype: torch.dtype, sinusoids: Sinusoids
) -> ControlNet:
    model = ControlNet(ControlNetConfig.from_shapes(shapes_of(weights), num_heads=num_heads))
    model.load_state_dict(weights)
    stand_in(model.time_text_embed.timestep_embedder, sinusoids)
    return model.to(dtype).eval()


def of_diffusers(reference, dtype: torch.dtype) -> tuple[dict[str, Tensor], MMDiT, ControlNet]:
    file, base = reference("controlnet"), reference("mmdit_qknorm_dual")
    model = transformer(base.weights(), base.config["sizes"]["num_heads"], dtype, file.sinusoids)
    inputs = {name: tensor.to(dtype) for name, tensor in file.under("in/").items()}
    inputs["sigma"] = file["in/sigma"]
    net = controlnet(file.weights(), file.config["sizes"]["num_heads"], dtype, file.sinusoids)
    return inputs, model, net


def residuals_of(net: ControlNet, base: MMDiT, inputs: dict[str, Tensor]) -> list[Tensor]:
    return net(base, *(inputs[name] for name in ("latents", "sigma", "pooled", "control")))


def velocity(base: MMDiT, inputs: dict[str, Tensor], **kwargs) -> Tensor:
    return base(*(inputs[name] for name in ("latents", "sigma", "context", "pooled")), **kwargs)


def test_residuals_and_velocity_as_in_diffusers(reference, precision, agree) -> None:
    dtype, limit = precision
    inputs, base, net = of_diffusers(reference, dtype)
    residuals = residuals_of(net, base, inputs)
    actual = {f"residual{i}": residual for i, residual in enumerate(residuals)}
    added = spread(residuals, base.config.depth, "diffusers")
    actual["velocity"] = velocity(base, inputs, residuals=added)
    # Diffusers adds the skipped block's residual as well, which is to add it to that of the block before.
    moved = [added[0] + added[1], None, *added[2:]]
    actual["velocity_skip_layers"] = velocity(base, inputs, residuals=moved, skip_layers=(1,))
    agree(actual, reference("controlnet").under("out64/" if dtype == torch.float64 else "out/"), limit)


def test_rules_differ(reference, error) -> None:
    """The last residual, and that of a skipped block, are too large to be mistaken."""
    file = reference("controlnet")
    inputs, base, net = of_diffusers(reference, torch.float32)
    residuals = residuals_of(net, base, inputs)
    assert error(velocity(base, inputs, residuals=residuals), file["out/velocity"]) > 1e-2
    added = spread(residuals, base.config.depth, "diffusers")
    skipped = velocity(base, inputs, residuals=added, skip_layers=(1,))
    assert error(skipped, file["out/velocity_skip_layers"]) > 1e-2


@pytest.mark.parametrize("name", ["controlnet_8b_like", "controlnet_2b_like"])
def test_every_block_as_in_the_original(name: str, golden, original_sinusoids, tapped, agree) -> None:
    file, base_file = golden(name), golden("controlnet_8b_like")
    sinusoids = original_sinusoids(file["in/sigma"])
    weights = base_file.weights("base/model.diffusion_model.")
    base = transformer(weights, file.config["base"]["num_heads"], torch.float32, sinusoids)
    weights = file.weights("controlnet/")
    weights["control_type"] = weights["control_type"].int()
    net = controlnet(weights, file.config["num_heads"], torch.float32, sinusoids)
    assert net.config.parallel == (file.config["kind"] == "2b")

    named = {
        "cn_t_embedder": "time_text_embed.timestep_embedder",
        "cn_y_embedder": "time_text_embed.text_embedder",
    }
    named |= {"pos_embed_input": "pos_embed_input"} | (
        {"cn_x_embedder": "pos_embed"} if net.config.parallel else {}
    )
    named |= {f"cn_block{i}": f"transformer_blocks.{i}" for i in range(net.config.depth)}
    inputs = {"latents": "in/x", "sigma": "in/sigma", "pooled": "in/y", "context": "in/context"}
    tensors = {ours: file[theirs] for ours, theirs in inputs.items()}
    tensors["control"] = file["in/controlnet_cond"].expand(2, -1, -1, -1)
    with tapped(net, named.values()) as stages:
        residuals = residuals_of(net, base, tensors)
    actual = {f"act/{stage}": stages[path] for stage, path in named.items()}
    actual |= {f"act/control_state{i}": residual for i, residual in enumerate(residuals)}

    with tapped(base, [f"joint_blocks.{i}" for i in range(base.config.depth)]) as blocks:
        actual["out/velocity"] = velocity(base, tensors, residuals=residuals)
    actual |= {
        f"act/base_block{i}.x_before_injection": blocks[f"joint_blocks.{i}.x"]
        for i in range(base.config.depth)
    }
    actual["out/denoised"] = (
        tensors["latents"] - tensors["sigma"][:, None, None, None] * actual["out/velocity"]
    )
    actual["out/velocity_without_control"] = velocity(base, tensors)
    if "ref_diffusers/velocity" in file.tensors:
        added = spread(residuals, base.config.depth, "diffusers")
        actual["ref_diffusers/velocity"] = velocity(base, tensors, residuals=added)
    agree(actual, {stage: file[stage] for stage in actual}, 2e-6)


def test_injection_maps_of_both_references(golden) -> None:
    """Which residual follows which block, for every pair of counts that divides."""
    maps = golden("tables").config["controlnet_injection_index"]
    assert "38/19" in maps
    for counts, by_reference in maps.items():
        depth, n = map(int, counts.split("/"))
        numbers = [torch.tensor(i) for i in range(n)]
        for rule, source in (("reference", "official"), ("diffusers", "diffusers")):
            added = [None if number is None else int(number) for number in spread(numbers, depth, rule)]
            assert added == by_reference[source], (counts, rule)
