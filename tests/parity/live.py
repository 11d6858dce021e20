"""Run a checkpoint through this project and through diffusers and transformers, and compare every stage.

    pip install -e ".[reference]"
    python tests/parity/live.py path/or/owner/name        # whatever `sd35 inspect` can read
    python tests/parity/live.py --random diffusers        # a small random model, or --random official

Prints one line a stage, from token ids to pixels and down to each block, and names the first that departs.
Every part gets the same input in both, the reference's, so that a departure is the fault of the stage that
shows it; only the states of the trajectory run on from each other. One part is in memory at a time, twice.
"""

import argparse
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project, when it is not installed

import diffusers
import live_reference as theirs
import torch
import transformers
from diffusers import StableDiffusion3Pipeline
from live_table import Table, run_both
from make_reference import transformer_taps, vae_taps
from reference_capture import float64_statistics, whole
from torch import Tensor, nn

import flow
import weights
from vae.image import to_uint8
from weights import Source
from weights.load import load_component

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
"""Largest error relative to the largest magnitude: the order of sums, over the depth of the real models."""

LOOSER = 4
"""States of a trajectory gather the errors of the steps before; the reference rounds them to its dtype."""

ENCODERS = ("clip_l", "clip_g", "t5")
PARTS = (*ENCODERS, "mmdit", "vae")


def check_text(
    table: Table, source: Source, names: list[str], args: argparse.Namespace, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """Token ids and layers of these encoders; of all three, the encoding, and the reference's is returned."""
    prompts, wanted = [args.prompt, ""], {name: name in names for name in ENCODERS}
    ours = weights.load_textenc(args.source, dtype=dtype, one_by_one=True, **wanted)
    tokens = ours.tokenize(prompts, policy="diffusers")
    parts = {}
    for name in names:
        suffix = {"clip_l": "", "clip_g": "_2", "t5": "_3"}[name]
        tokenizer, model = theirs.tokenizer(source, name), theirs.load(source, name, dtype)
        parts |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": model}
        length = 256 if name == "t5" else 77
        ids = tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        table.add_equal(f"{name} token ids", ids.input_ids, torch.tensor([one.ids for one in tokens[name]]))
        check_encoder(table, source, name, model, ids.input_ids, dtype)
    if len(names) < len(ENCODERS):
        return None
    pipe = StableDiffusion3Pipeline(transformer=None, vae=None, scheduler=theirs.scheduler(source), **parts)
    context, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=256
    )
    encoding = ours.encode(prompts, policy="diffusers")
    table.add("context", context, encoding.context)
    table.add("pooled", pooled, encoding.pooled)
    return context, pooled


def check_encoder(
    table: Table, source: Source, name: str, model: nn.Module, ids: Tensor, dtype: torch.dtype
) -> None:
    """Every layer of one text encoder over the same ids."""
    ours = load_component(source.component(name), dtype=dtype)
    if name == "t5":
        taps = {"shared": ("encoder.embed_tokens", whole)}
        taps |= {f"encoder.block.{i}": (f"encoder.block.{i}", whole) for i in range(ours.config.depth)}
        calls = (lambda: {"last": model(ids).last_hidden_state}, lambda: {"last": ours(ids)})
    else:
        paths = ["text_model.embeddings"]
        paths += [f"text_model.encoder.layers.{i}" for i in range(ours.config.depth)]
        taps = {path: (path, whole) for path in paths}
        calls = (lambda: _clip_outputs(model(ids, output_hidden_states=True)), lambda: ours(ids)._asdict())
    run_both(table, name, (model, ours), taps, calls)


def _clip_outputs(output) -> dict[str, Tensor]:
    names = {"last": output.last_hidden_state, "pooled": output.text_embeds}
    return {"penultimate": output.hidden_states[-2]} | names


def check_transformer(
    table: Table,
    source: Source,
    encoding: tuple[Tensor, Tensor],
    noise: Tensor,
    args: argparse.Namespace,
    dtype: torch.dtype,
) -> Tensor:
    """Noise levels, every block at the first of them, each state of a trajectory; returns the latents."""
    context, pooled = encoding
    model, ours = theirs.load(source, "mmdit", dtype), load_component(source.component("mmdit"), dtype=dtype)
    pipe = StableDiffusion3Pipeline(
        transformer=model, vae=None, scheduler=theirs.scheduler(source),
        **{f"{kind}{suffix}": None for kind in ("tokenizer", "text_encoder") for suffix in ("", "_2", "_3")},
    )  # fmt: skip
    sigmas = flow.sigmas(args.steps, float(pipe.scheduler.config.shift), preset="diffusers")
    pipe.scheduler.set_timesteps(args.steps)
    table.add_equal("sigmas", pipe.scheduler.sigmas, sigmas)

    both, sigma = noise.repeat(2, 1, 1, 1), sigmas[:1].expand(2)
    calls = (
        lambda: {"velocity": model(both.to(dtype), context, pooled, 1000 * sigma, return_dict=False)[0]},
        lambda: {"velocity": ours(both.to(dtype), sigma, context, pooled)},
    )
    run_both(table, "mmdit", (model, ours), transformer_taps(ours.config.depth), calls)

    states = []
    pipe.set_progress_bar_config(disable=True)
    pipe(
        prompt_embeds=context[:1], pooled_prompt_embeds=pooled[:1],
        negative_prompt_embeds=context[1:], negative_pooled_prompt_embeds=pooled[1:],
        num_inference_steps=args.steps, guidance_scale=args.guidance_scale,
        height=args.height, width=args.width, latents=noise.to(dtype), output_type="latent",
        callback_on_step_end=lambda pipe, i, t, state: states.append(state["latents"].clone()) or state,
    )  # fmt: skip

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        cond, uncond = ours(x.repeat(2, 1, 1, 1), sigma.repeat(2), context, pooled).chunk(2)
        return flow.guide(cond, uncond, args.guidance_scale)

    floor = 1e-5 / table.limit / LOOSER  # the reference keeps its state in float32 at best
    for step in flow.euler(velocity, noise, sigmas):
        table.add(f"state {step.number + 1}", states[step.number], step.x, max(LOOSER, LOOSER * floor))
    return states[-1]


def check_vae(table: Table, source: Source, latents: Tensor, dtype: torch.dtype) -> None:
    """Both halves of the autoencoder and the eight-bit picture."""
    model, ours = theirs.load(source, "vae", dtype), load_component(source.component("vae"), dtype=dtype)
    latents = latents.to(dtype)
    shift, scale = model.config.shift_factor, model.config.scaling_factor
    taps, half = vae_taps(len(ours.config.channels)), ("decoder", "encoder")
    decoder, encoder = ({path: tap for path, tap in taps.items() if path.startswith(side)} for side in half)
    calls = (
        lambda: {"image": model.decode(latents / scale + shift, return_dict=False)[0]},
        lambda: {"image": ours.decode(latents)},
    )
    image = run_both(table, "vae", (model, ours), decoder, calls)["image"]
    pixels = to_uint8(ours.decode(latents).float(), "diffusers").int()
    difference = (pixels - ((image.float() / 2 + 0.5).clamp(0, 1) * 255).round().int()).abs()
    share, most = float((difference > 0).float().mean()), int(difference.max())
    print(f"{'pixels':52} {share:.2%} differ, by at most {most}")
    if most > 255 * table.limit + 1:
        table.departed.append("pixels")
    calls = (
        lambda: {"mean": model.encode(image).latent_dist.mean},
        lambda: {"mean": ours.moments(image)[0]},
    )
    run_both(table, "vae", (model, ours), encoder, calls)


def random_encoding(source: Source, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the transformer reads where the source does not have all encoders."""
    config = weights.build_mmdit(source.component("mmdit").shapes()).config
    context = torch.randn(2, 77 + 256, config.context_dim, generator=generator)
    return context.to(dtype), torch.randn(2, config.pooled_dim, generator=generator).to(dtype)


def arguments(argv: Iterable[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", help="a file, a folder, or owner/name on the Hub")
    parser.add_argument(
        "--random", choices=["diffusers", "official"], help="a small random model so laid out"
    )
    parser.add_argument("--prompt", default="a small red circle on the left of the blue square")
    parser.add_argument("--dtype", choices=["float64", "float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance-scale", type=float, default=4.5)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if (args.source is None) == (args.random is None):
        parser.error("name a source, or give --random")
    return args


@torch.no_grad()
def compare(source: Source, args: argparse.Namespace) -> Table:
    """Run every part of a source that is there, in both; a text encoder only with its tokenizer.

    What a part would read of one that is not there is random.
    """
    dtype = getattr(torch, args.dtype)
    there = [part for part in PARTS if part in source.components]
    encoders = [part for part in there if part in source.tokenizers]
    there = [part for part in there if part in encoders or part not in ENCODERS]
    if not there:
        raise SystemExit(f"{source.name} holds nothing to compare: no {', '.join(PARTS)} (with tokenizers)")
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (diffusers, transformers))
    print(f"{source.name}, {args.dtype}; {versions}")
    if left_out := [part for part in PARTS if part not in there]:
        print(f"left out, since they or their tokenizers are not in this source: {', '.join(left_out)}")
    table = Table(LIMITS[dtype])
    generator = torch.Generator().manual_seed(args.seed)
    latents = torch.randn(1, 16, args.height // 8, args.width // 8, generator=generator)
    # In float64 the references' norms still take their statistics in float32; that is lifted here.
    with float64_statistics() if dtype == torch.float64 else nullcontext():
        encoding = check_text(table, source, encoders, args, dtype) if encoders else None
        if "mmdit" in there:
            encoding = encoding or random_encoding(source, generator, dtype)
            latents = check_transformer(table, source, encoding, latents, args, dtype)
        if "vae" in there:
            check_vae(table, source, latents, dtype)
    return table


def main(argv: Iterable[str] | None = None) -> int:
    """Compare, and return 0 if no stage departs."""
    args = arguments(argv)
    for package in (diffusers, transformers):
        package.logging.set_verbosity_error()
        package.logging.disable_progress_bar()
    with TemporaryDirectory(prefix="random-sd3-") as folder:
        if args.random:
            theirs.random_folder(Path(folder), args.random)
            args.source = folder
        table = compare(weights.resolve(args.source, PARTS), args)
    if table.departed:
        print(f"\nfirst departure: {table.departed[0]} ({len(table.departed)} stages above {table.limit:g})")
        return 1
    print(f"\nno stage departs by more than {table.limit:g} of its largest magnitude")
    return 0


if __name__ == "__main__":
    sys.exit(main())
