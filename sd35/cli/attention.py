"""Draw a picture, and a sheet that shows where in it each word of the prompt is read.

The sheet has a column for each word: its heat map over the picture, alone, and in early, middle and late
blocks. A table of numbers is printed.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..settings import Settings
from .model import add_model, found_model, load_pipeline
from .options import add_prompts, add_settings, given_settings, prompt_of, tell

if TYPE_CHECKING:
    from ..attention import AttentionMaps

SUMMARY = "show where in a picture each word is read"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.usage = "%(prog)s PROMPT [options]"
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument("-w", "--word", dest="words", action="append", help="only this word; may be repeated")
    parser.add_argument(
        "--part",
        choices=("image-text", "text-image"),
        default="image-text",
        help="how much each patch reads a word (image-text, the default), or where a word reads the picture",
    )
    parser.add_argument("--encoder", choices=("clip_l", "clip_g", "t5"), help="only pieces of this encoder")
    parser.add_argument(
        "--block", dest="blocks", type=int, action="append", help="only this block; may be repeated"
    )
    parser.add_argument(
        "--at-step",
        dest="at_steps",
        metavar="STEP",
        type=int,
        action="append",
        help="only this step, from 0; may be repeated",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("attention.png"),
        metavar="PNG",
        help="the sheet; attention.png by default",
    )
    output.add_argument("--overwrite", action="store_true", help="replace a sheet that exists")
    add_prompts(parser)
    add_settings(parser, "sampling", Settings, but=("images_per_prompt", "batch_size"))
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Check what was asked for, load, draw, save the sheet; print its path and the numbers."""
    from ..attention import attention_maps, attention_sheet, check_words, words_of
    from ..errors import SettingsError
    from ..saved.write import check_output, written
    from ..tasks.generate import Generate, generate

    prompt, given = prompt_of(args), given_settings(args, Settings)
    settings = Generate.of(prompt, given).settings
    check_words(settings.prompts[0], args.words or ())
    check_output([args.output], suffix=".png", overwrite=args.overwrite)
    found = found_model(args, settings)
    request = Generate.of(prompt, given, variant=found.variant)
    settings = request.settings
    late = sorted(step for step in args.at_steps or () if not 0 <= step < settings.steps)
    if late:
        raise SettingsError(f"--at-step must be 0 to {settings.steps - 1}, got {late[0]}")
    pipe = load_pipeline(args, settings, found=found, blocks=args.blocks or ())
    with attention_maps(pipe.mmdit, [args.part], blocks=args.blocks, steps=args.at_steps) as maps:
        result = generate(pipe, request, progress=sys.stderr.isatty())
    tell(result.notes)
    words = args.words or words_of(maps.encoding())
    sheet = attention_sheet(maps, result.images[0], words=words, part=args.part, encoder=args.encoder)
    with written(args.output, overwrite=args.overwrite) as temporary:
        sheet.save(temporary, format="png")
    print(args.output)
    print(table(maps, words, args))
    return 0


def table(maps: "AttentionMaps", words: list[str], args: argparse.Namespace) -> str:
    """For each word: its mean heat, its largest, how much that stands out, and where the heat's centre is."""
    lines = [f"{'word':<16} {'mean':>9} {'largest':>9} {'ratio':>6}  centre (x, y from the top left, 0 to 1)"]
    for word in words:
        heat = maps.heatmap(word, part=args.part, encoder=args.encoder)
        rows, columns = heat.shape
        share = heat / heat.sum()
        x = sum(float(share[:, i].sum()) * (i + 0.5) / columns for i in range(columns))
        y = sum(float(share[i].sum()) * (i + 0.5) / rows for i in range(rows))
        mean, top = float(heat.mean()), float(heat.max())
        lines.append(f"{word:<16} {mean:>9.3g} {top:>9.3g} {top / mean:>6.1f}  {x:.2f}, {y:.2f}")
    return "\n".join(lines)
