"""Options that several commands share."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..pipeline import Pipeline
    from ..settings import Settings

SETTINGS = (
    "negative",
    "seed",
    "steps",
    "guidance_scale",
    "width",
    "height",
    "images_per_prompt",
    "solver",
    "schedule",
    "schedule_shift",
    "policy",
    "missing",
    "batch_size",
)
"""Fields of `Settings` that options set. An option that is not given leaves no trace in the arguments."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """What is loaded, where and how."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        metavar="SOURCE",
        help="tiny (the default: the model that comes with this project), a .safetensors file, a folder, or "
        "owner/name[@revision] on the Hugging Face Hub",
    )
    group.add_argument(
        "--text-encoders", metavar="SOURCE", help="another source for text encoders and tokenizers"
    )
    group.add_argument("--vae", metavar="SOURCE", help="another source for the autoencoder")
    group.add_argument(
        "--tokenizers", metavar="SOURCE", help="another source for tokenizers: small files, no weights"
    )
    group.add_argument("--clip-l", metavar="SOURCE", help="another source for the text encoder CLIP-L")
    group.add_argument("--clip-g", metavar="SOURCE", help="another source for the text encoder CLIP-G")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--t5", metavar="SOURCE", help="another source for T5, the largest text encoder")
    which.add_argument("--no-t5", dest="t5", action="store_const", const=False, help="leave T5 out")
    group.add_argument(
        "--one-by-one", action="store_true", help="keep one text encoder in memory at a time, to save memory"
    )
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto (the default): the fastest there is"
    )
    group.add_argument(
        "--dtype", help="float32 (the default on a CPU), bfloat16 or float16; elsewhere the files' own"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How a picture is drawn: the fields of `Settings`."""
    group = parser.add_argument_group("sampling")

    def option(*names: str, **details: Any) -> None:
        group.add_argument(*names, default=argparse.SUPPRESS, **details)

    option("--negative", metavar="PROMPT", help="what to move away from")
    option("--seed", type=int, help="0 (the default) to 4294967295; image k of several has the seed + k")
    option("--steps", type=int, help="steps of the solver (default 28)")
    option(
        "--guidance-scale",
        "--cfg",
        type=float,
        metavar="SCALE",
        help="how strongly to follow the prompt (default 4.5); 1 is no guidance, at half the cost",
    )
    _add_guidance(option)
    option("--width", type=int, help="in pixels, a multiple of 16; the model's own size by default")
    option("--height", type=int, help="likewise")
    option("--solver", help="euler (the default), midpoint, heun, dpmpp_2m, ...; a wrong name lists them all")
    option(
        "--solver-option",
        action="append",
        metavar="NAME=VALUE",
        help="an option of the solver, as rtol=1e-4 of dopri5; may be repeated",
    )
    option("--schedule", help="table of noise levels: reference (the default), diffusers or linear")
    option("--schedule-shift", type=float, metavar="SHIFT", help="toward noise (default 3)")
    option("--policy", help="how prompts are read: reference (the default), diffusers or reference-exact")
    option("--missing", help="what stands for a missing text encoder: zeros (the default) or drop")
    option(
        "--images-per-prompt", "--batch", type=int, metavar="N", help="pictures of each prompt (default 1)"
    )
    option(
        "--batch-size",
        type=int,
        metavar="N",
        help="pictures that go through the transformer together (default 1); more may be faster",
    )


def _add_guidance(option: Callable[..., None]) -> None:
    """How guidance is done: the fields of `Guidance`, each described by a call of `option`."""
    option(
        "--guidance-rule",
        metavar="RULE",
        help="plain (the default), cfg_zero (CFG-Zero*) or apg (adaptive projected)",
    )
    option(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels that are guided (default 0 1)",
    )
    option("--zero-steps", type=int, metavar="N", help="first steps that stand still (CFG-Zero*; default 0)")
    option(
        "--skip-layer", metavar="NAME", help="skip-layer guidance with the numbers of reference or diffusers"
    )
    option(
        "--skipped",
        type=int,
        nargs="+",
        metavar="BLOCK",
        help="blocks that it leaves out (default 7 8 9, SD3.5-medium's)",
    )
    option("--guidance-rescale", type=float, metavar="PHI", help="of the spread, 0 (the default) to 1")
    option(
        "--guidance-threshold",
        type=float,
        nargs=2,
        metavar=("PERCENTILE", "BOUND"),
        help="dynamic thresholding, as 0.995 3",
    )


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those fields of `Settings` that the user gave.

    Raises:
        SettingsError: guidance out of range, or an option of the solver that is no NAME=VALUE.
    """
    given = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    if hasattr(args, "solver_option"):
        given["solver_options"] = options_of(args.solver_option)
    if guidance := _given_guidance(args):
        from ..guidance import Guidance

        given["guidance"] = Guidance(**guidance)
    return given


def _given_guidance(args: argparse.Namespace) -> dict[str, Any]:
    """Those fields of `Guidance` that the user gave."""
    names = {"guidance_rule": "rule", "zero_steps": "zero_steps", "guidance_rescale": "rescale"}
    given = {field: getattr(args, name) for name, field in names.items() if hasattr(args, name)}
    pairs = {"guidance_interval": "interval", "guidance_threshold": "threshold"}
    given |= {field: tuple(getattr(args, name)) for name, field in pairs.items() if hasattr(args, name)}
    skipped = tuple(args.skipped) if hasattr(args, "skipped") else None
    if hasattr(args, "skip_layer") or skipped is not None:
        from ..guidance import named_skip_layer

        given["skip_layer"] = named_skip_layer(getattr(args, "skip_layer", "reference"), skipped)
    return given


def options_of(pairs: list[str] | None) -> dict[str, Any]:
    """Options given as NAME=VALUE; a value is a number, true, false or null as in JSON, and else a word.

    Raises:
        SettingsError: one of them is no NAME=VALUE.
    """
    from ..errors import SettingsError

    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise SettingsError(f"an option is given as NAME=VALUE, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def load_pipeline(
    args: argparse.Namespace,
    settings: "Settings",
    *,
    dtype: str | None = None,
    blocks: Iterable[int] = (),
) -> "Pipeline":
    """Load what `add_model`'s options ask for; and where they are silent, what a picture was made with.

    Args:
        args: the parsed arguments.
        settings: of what is to be drawn. Those of an earlier picture say what that was made with.
        dtype: in place of the picture's.
        blocks: numbers of joint blocks that are to be looked into.

    Raises:
        ValueError: as `load`; or the model draws no such size or has no such blocks, before weights are read.
    """
    from ..attention import check_blocks
    from ..device import as_device, as_dtype
    from ..found import find
    from ..loading import load_found
    from ..size import check_size

    made = settings.made_with
    device = as_device(args.device)
    with_t5 = made.get("t5") != "no" if args.t5 is None else args.t5 is not False
    chosen = {
        name: getattr(args, name) or made.get(f"{name}_source")
        for name in ("text_encoders", "clip_l", "clip_g", "t5", "tokenizers", "vae")
    }
    options: dict[str, Any] = {name: place for name, place in chosen.items() if place}
    options |= {} if with_t5 else {"t5": False}
    found = find(args.model or settings.model or "tiny", **options)
    width, height = settings.width or found.size.width, settings.height or found.size.height
    check_size(width, height, found.mmdit, found.vae)
    check_blocks(blocks, found.mmdit.depth)
    pipe = load_found(
        found, device, as_dtype(args.dtype or dtype) or _dtypes(made), one_by_one=args.one_by_one
    )
    drawn_on = made.get("device", device.type)
    if args.device == "auto" and dtype is None and drawn_on != device.type:
        print(
            f"note: this was drawn on {drawn_on}, and is computed on {device.type}, which rounds otherwise: "
            "expect small differences",
            file=sys.stderr,
        )
    return pipe


def _dtypes(made_with: Mapping[str, str]) -> "dict[str, torch.dtype | None] | None":
    """What each part of a picture's model computed in; None where nothing tells."""
    from weights.parts import PARTS

    from ..device import as_dtype

    if "dtype" not in made_with:
        return None
    return {part: as_dtype(made_with.get(f"{part}_dtype", made_with["dtype"])) for part in PARTS}
