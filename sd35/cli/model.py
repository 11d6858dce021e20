"""Options that say which model is loaded, where and how; and loading it."""

import argparse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .options import tell

if TYPE_CHECKING:
    import torch

    from ..found import Found
    from ..pipeline import Pipeline
    from ..settings import Settings

SOURCES = ("text_encoders", "clip_l", "clip_g", "t5", "tokenizers", "vae")
"""What may come from elsewhere than the model."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """What is loaded to draw, where and how."""
    usual = "float32 on a CPU (a large model draws in bfloat16 where that is fast), elsewhere the files' own"
    group = add_source(parser, dtype=usual)
    group.add_argument(
        "--one-by-one", action="store_true", help="keep one text encoder in memory at a time, to save memory"
    )
    group.add_argument(
        "--memory",
        default="auto",
        metavar="LEVEL",
        help="auto (the default: what fits), off, low or lower (the same bits in less memory) or lowest (the "
        "least; pictures are coded in tiles, which changes larger ones a little)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the transformer by block: faster after some seconds, with other rounding",
    )
    group.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="on a CUDA GPU, repeat the kernels of the first step: the same bits, faster for small pictures",
    )
    group.add_argument(
        "--fp8",
        action="store_true",
        help="products in 8-bit floats, on NVIDIA GPUs from Ada on: half the weights, faster with --compile, "
        "with other pictures",
    )
    group.add_argument(
        "--unpack",
        action="store_true",
        help="turn weights in few bits (GGUF, fp8, int8) into numbers once: faster, in more memory",
    )


def add_source(parser: argparse.ArgumentParser, *, dtype: str) -> Any:
    """Where the parts come from, and where they compute; gives the group of options back.

    Args:
        parser: of the command.
        dtype: what is the default.
    """
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
        "--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto (the default): the fastest there is"
    )
    group.add_argument("--dtype", help=f"float32, bfloat16 or float16; by default {dtype}")
    return group


def found_model(args: argparse.Namespace, settings: "Settings") -> "Found":
    """Look for what the options ask for; and where they are silent, what a picture was made with."""
    from ..found import find

    made = settings.made_with
    with_t5 = made.get("t5") != "no" if args.t5 is None else args.t5 is not False
    chosen = {name: getattr(args, name) or made.get(f"{name}_source") for name in SOURCES}
    options: dict[str, Any] = {name: place for name, place in chosen.items() if place}
    options |= {} if with_t5 else {"t5": False}
    return find(settings.model or "tiny" if args.model is None else args.model, **options)


def load_pipeline(
    args: argparse.Namespace,
    settings: "Settings",
    *,
    found: "Found | None" = None,
    dtype: str | None = None,
    exact: bool = False,
    blocks: Iterable[int] = (),
) -> "Pipeline":
    """Load the model of `found_model`.

    Args:
        args: the parsed arguments.
        settings: of what is to be drawn. Those of an earlier picture say what that was made with.
        found: what `found_model` gave, where it was asked already.
        dtype: in place of the picture's.
        exact: float32 on a CPU where nothing says otherwise, whatever is faster.
        blocks: numbers of joint blocks that are to be looked into.

    Raises:
        ValueError: as `load`; or the model draws no such size or has no such blocks, before weights are read.
    """
    from ..attention import check_blocks
    from ..device import as_device, as_dtype
    from ..found import is_of_values
    from ..loading import check_loras, load_found, usual_dtype
    from ..size import check_size
    from ..tasks.steer import find_control

    made = settings.made_with
    device = as_device(args.device)
    found = found or found_model(args, settings)
    width, height = settings.width or found.size.width, settings.height or found.size.height
    check_size(width, height, found.mmdit, found.vae)
    check_blocks(blocks, found.mmdit.depth)
    check_loras(found, settings.loras or ())
    for control in settings.control or ():
        find_control(control, found.mmdit)
    recorded = made.get("weights", "")
    asked, notes = as_dtype(args.dtype or dtype) or _dtypes(made), ()
    if asked is None and not exact:
        asked, notes = usual_dtype(found, device)
    pipe = load_found(
        found,
        device,
        asked,
        memory=args.memory,
        compile=args.compile,
        cuda_graphs=args.cuda_graphs,
        fp8=args.fp8,
        one_by_one=args.one_by_one,
        unpack=args.unpack,
        hash_values=getattr(args, "hash_values", False) or is_of_values(recorded),
    )
    tell([*notes, *pipe.notes])
    named = args.model is not None or any(getattr(args, name) is not None for name in SOURCES)
    if not named and recorded and recorded != found.hash_like(recorded):
        tell([f"the weights in {found.model} are not those that this picture was drawn with"])
    for lora in settings.loras or ():
        report = pipe.add_lora(lora.source, lora.scale, lora.name or None, lora.merged)
        tell(str(report).splitlines())
    drawn_on = made.get("device", device.type)
    if args.device == "auto" and dtype is None and drawn_on != device.type:
        tell(
            [
                f"this was drawn on {drawn_on}, and is computed on {device.type}, which rounds otherwise: "
                "expect small differences"
            ]
        )
    return pipe


def _dtypes(made_with: Mapping[str, str]) -> "dict[str, torch.dtype | None] | None":
    """What each part of a picture's model computed in; None where nothing tells."""
    from weights.parts import PARTS

    from ..device import as_dtype

    if "dtype" not in made_with:
        return None
    return {part: as_dtype(made_with.get(f"{part}_dtype", made_with["dtype"])) for part in PARTS}
