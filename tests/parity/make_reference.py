"""Make the stored reference activations of this folder from diffusers and transformers.

    pip install -e ".[reference]" && python tests/parity/make_reference.py

Each file holds `weights/*` under the official keys, `in/*`, and what the reference computes from them:
`out/*` in float32, `out64/*` in float64, and `act64/*`, activations in float64 named by the path of this
project's module that computes the same. The header names the versions, the seed and the sizes.

`in/sinusoids` are those of the timesteps, float32 in every run. Their last bits depend on the processor that
runs this script; what is stored beside them was computed from them.

Diffusers' RMSNorm and transformers' T5LayerNorm take their mean square in float32 even in a float64 run;
`float64_statistics` lifts that, so that act64 and out64 are float64 throughout. What the references give
without it is kept too, as `out64_float32_statistics/*`.
"""

import argparse
import copy
from dataclasses import asdict
from pathlib import Path

import diffusers
import make_verify
import reference_models as models
import reference_shapes as shapes
import reference_text as text
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from reference_capture import PRECISIONS, Tap, both_precisions, save, statistics, stored, whole
from reference_models import Tensors
from torch import Tensor, nn

SEEDS = {"mmdit_qknorm_dual": 11, "mmdit_plain": 12, "controlnet": 13, "vae": 14}
QKNORM_DUAL = shapes.TransformerSizes(dim=64, depth=4, num_heads=2, qk_norm=True, dual_blocks=(0,))
PLAIN = shapes.TransformerSizes(dim=32, depth=2, num_heads=1, qk_norm=False)
CONTROLNET = shapes.TransformerSizes(dim=64, depth=2, num_heads=2, qk_norm=False)
VAE = shapes.VAESizes()
STEPS = (1, 2, 3, 4, 5, 8, 20, 28, 40, 50)


def transformer_taps(depth: int) -> dict[str, Tap]:
    """Embedders, every block, and the sub-layers of block 0."""
    taps: dict[str, Tap] = {
        "x_embedder": ("pos_embed.proj", lambda y: {"": y.flatten(2).transpose(1, 2)}),
        "t_embedder": ("time_text_embed.timestep_embedder", whole),
        "y_embedder": ("time_text_embed.text_embedder", whole),
        "context_embedder": ("context_embedder", whole),
        "final_layer": ("proj_out", whole),
        "joint_blocks.0.x_block.attn.proj": ("transformer_blocks.0.attn.to_out.0", whole),
        "joint_blocks.0.context_block.attn.proj": ("transformer_blocks.0.attn.to_add_out", whole),
        "joint_blocks.0.x_block.mlp": ("transformer_blocks.0.ff", whole),
        "joint_blocks.0.context_block.mlp": ("transformer_blocks.0.ff_context", whole),
    }
    for i in range(depth):
        # Diffusers returns (context, x), None for the last block's context.
        taps[f"joint_blocks.{i}"] = (
            f"transformer_blocks.{i}",
            lambda y: {".x": y[1]} | ({".context": y[0]} if y[0] is not None else {}),
        )
    return taps


def transformer_inputs(sizes: shapes.TransformerSizes, seed: int) -> Tensors:
    """Two samples at two noise levels, and latents whose crop of the position table is not centred."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "in/latents": torch.randn(2, 16, 4, 6, generator=generator),
        "in/latents_oddcrop": torch.randn(2, 16, 6, 10, generator=generator),
        "in/sigma": torch.tensor([0.9133489, 0.11090573]),
        "in/context": torch.randn(2, 7, sizes.context_dim, generator=generator),
        "in/pooled": torch.randn(2, sizes.pooled_dim, generator=generator),
    }


def sinusoids(model: nn.Module, sigma: Tensor) -> Tensor:
    """What diffusers' transformer, or ControlNet, embeds of these noise levels: (n, 256), float32."""
    return model.time_text_embed.time_proj(1000 * sigma)


def velocity(
    model: nn.Module, inputs: Tensors, dtype: torch.dtype, latents: str = "in/latents", **kwargs: object
) -> Tensor:
    """Diffusers' transformer under this project's names."""
    return model(
        inputs[latents].to(dtype),
        inputs["in/context"].to(dtype),
        inputs["in/pooled"].to(dtype),
        1000 * inputs["in/sigma"],
        return_dict=False,
        **kwargs,
    )[0]


@torch.no_grad()
def transformer_file(name: str, sizes: shapes.TransformerSizes) -> tuple[Tensors, nn.Module]:
    """One transformer: its blocks, its velocity, skipped layers, and diffusers' own low precision."""
    weights, model = models.transformer(sizes, SEEDS[name])
    inputs = transformer_inputs(sizes, SEEDS[name])
    inputs["in/sinusoids"] = sinusoids(model, inputs["in/sigma"])
    taps = transformer_taps(sizes.depth)
    if sizes.qk_norm:
        for stream, norms in (("x_block", "norm_{}"), ("context_block", "norm_added_{}")):
            for part in "qk":
                path = f"transformer_blocks.0.attn.{norms.format(part)}"
                taps[f"joint_blocks.0.{stream}.attn.ln_{part}"] = (path, whole)
        taps["joint_blocks.0.x_block.attn2.proj"] = ("transformer_blocks.0.attn2.to_out.0", whole)
    result = both_precisions(model, taps, lambda dtype: {"velocity": velocity(model, inputs, dtype)})
    for dtype, suffix in PRECISIONS:
        with statistics(dtype):
            model.to(dtype)
            outputs = {
                "velocity_oddcrop": velocity(model, inputs, dtype, "in/latents_oddcrop"),
                "velocity_skip_layers": velocity(model, inputs, dtype, skip_layers=[sizes.depth - 2]),
            }
        result |= {f"out{suffix}/{key}": tensor for key, tensor in outputs.items()}
    result["out64_float32_statistics/velocity"] = velocity(model.double(), inputs, torch.float64)
    model.float()
    for dtype, suffix in ((torch.bfloat16, "_bf16"), (torch.float16, "_fp16")):
        low = copy.deepcopy(model).to(dtype)
        result[f"out{suffix}/velocity"] = velocity(low, inputs, dtype).float()
    return stored(weights) | inputs | result, model


@torch.no_grad()
def controlnet_file(base: nn.Module) -> Tensors:
    """A ControlNet and what it does to the velocity of the qk-norm model."""
    weights, model = models.controlnet(CONTROLNET, SEEDS["controlnet"])
    inputs = transformer_inputs(CONTROLNET, SEEDS["controlnet"])
    del inputs["in/latents_oddcrop"]
    inputs["in/control"] = inputs["in/latents"].flip(0) - 0.5
    inputs["in/sinusoids"] = sinusoids(model, inputs["in/sigma"])
    result: Tensors = {}
    for dtype, suffix in PRECISIONS:
        model.to(dtype)
        base.to(dtype)
        with statistics(dtype):
            residuals = model(
                base.pos_embed(inputs["in/latents"].to(dtype)),
                inputs["in/control"].to(dtype),
                pooled_projections=inputs["in/pooled"].to(dtype),
                timestep=1000 * inputs["in/sigma"],
                return_dict=False,
            )[0]
            control = {"block_controlnet_hidden_states": residuals}
            result[f"out{suffix}/velocity"] = velocity(base, inputs, dtype, **control)
            skipped = velocity(base, inputs, dtype, **control, skip_layers=[1])
        result[f"out{suffix}/velocity_skip_layers"] = skipped
        result |= {f"out{suffix}/residual{i}": residual for i, residual in enumerate(residuals)}
    base.float()
    return stored(weights) | inputs | result


def vae_taps(levels: int = 4) -> dict[str, Tap]:
    """Every stage of the encoder and the decoder."""
    taps: dict[str, Tap] = {}
    for side, stack in (("encoder", "down"), ("decoder", "up")):
        taps[f"{side}.conv_out"] = (f"{side}.conv_out", whole)
        middle = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
        taps |= {
            f"{side}.mid.{ours}": (f"{side}.mid_block.{theirs}", whole) for ours, theirs in middle.items()
        }
        for i in range(levels):
            number = i if stack == "down" else levels - 1 - i  # diffusers counts up from the latents
            taps[f"{side}.{stack}.{i}"] = (f"{side}.{stack}_blocks.{number}", whole)
    return taps


@torch.no_grad()
def vae_file() -> tuple[Tensors, nn.Module]:
    """The autoencoder: every stage, the moments of an image, the image of latents."""
    weights, model = models.autoencoder(VAE, SEEDS["vae"])
    generator = torch.Generator().manual_seed(SEEDS["vae"])
    pixels = torch.randint(0, 256, (1, 3, 16, 24), generator=generator, dtype=torch.uint8)
    inputs = {"in/image_uint8": pixels, "in/image": pixels / 255 * 2 - 1}
    inputs["in/latents"] = torch.randn(1, 16, 2, 3, generator=generator)

    def call(dtype: torch.dtype) -> Tensors:
        posterior = model.encode(inputs["in/image"].to(dtype)).latent_dist
        config = model.config
        z = inputs["in/latents"].to(dtype) / config.scaling_factor + config.shift_factor
        return {
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "latents": (posterior.mean - config.shift_factor) * config.scaling_factor,
            "decoded": model.decode(z, return_dict=False)[0],
        }

    return stored(weights) | inputs | both_precisions(model, vae_taps(), call), model


def schedule_file() -> Tensors:
    """FlowMatchEulerDiscreteScheduler's tables for shift 3 and 1."""
    result = {}
    for shift in (1.0, 3.0):
        for steps in STEPS:
            scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
            scheduler.set_timesteps(steps)
            result[f"shift{shift:g}/steps{steps}/sigmas"] = scheduler.sigmas
            result[f"shift{shift:g}/steps{steps}/timesteps"] = scheduler.timesteps
    return result


def main() -> None:
    """Write every file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder = parser.parse_args().output
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # the order of sums, and with it the last bits, depends on the number of threads

    tensors, base = transformer_file("mmdit_qknorm_dual", QKNORM_DUAL)
    save(folder, "mmdit_qknorm_dual", tensors, sizes=asdict(QKNORM_DUAL), seed=SEEDS["mmdit_qknorm_dual"])
    tensors, _ = transformer_file("mmdit_plain", PLAIN)
    save(folder, "mmdit_plain", tensors, sizes=asdict(PLAIN), seed=SEEDS["mmdit_plain"])
    save(
        folder,
        "controlnet",
        controlnet_file(base),
        sizes=asdict(CONTROLNET),
        seed=SEEDS["controlnet"],
        base="mmdit_qknorm_dual",
    )
    tensors, vae = vae_file()
    save(folder, "vae", tensors, sizes=asdict(VAE), seed=SEEDS["vae"])
    save(folder, "schedules", schedule_file(), shifts=[1.0, 3.0], steps=STEPS)
    text.encoder_files(folder)
    text.trajectory_file(folder, base, vae)
    if folder == Path(__file__).parent:
        make_verify.write(folder)


if __name__ == "__main__":
    main()
