"""Hide marks in the noise that pictures are drawn from, and count how many are found in the saved pictures.

    python examples/watermark.py --pictures 200

Every picture has a key of its own. It is saved, read back and looked at as by one who knows neither its
prompt nor its settings. A mark counts as found where its key agrees with the noise better than 99 % of other
keys do, so that one in a hundred pictures that do not bear it is expected to pass; here those are the
pictures with the other mark.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import sd35
from sd35.device import as_device, as_dtype
from sd35.marks import MARKS
from sd35.tiny.captions import held_out_prompts
from vae.image import read

FIRST_KEY = 1_000
"""Of the first picture; those that follow count on from it."""

KINDS: dict[str, Callable[[Image.Image, Path], Path]] = {}
"""By the name in the table: how a picture is saved; the path that it is saved under."""


def saved(name: str, suffix: str, **options: Any) -> None:
    """Add a kind of file."""

    def save(picture: Image.Image, path: Path) -> Path:
        picture.save(path.with_suffix(suffix), **options)
        return path.with_suffix(suffix)

    KINDS[name] = save


saved("PNG, 8 bits", ".png")
saved("JPEG, quality 90", ".jpg", quality=90)
saved("JPEG, quality 75", ".jpg", quality=75)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw pictures with either mark, and print how many of them are told to bear it."""
    args = arguments().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), as_dtype(args.dtype))
    prompts = held_out_prompts(args.pictures, shapes=1, seed=0)
    # How often each mark was found in each kind of file, by whether it was there.
    found: dict[tuple[str, str], dict[bool, list[bool]]] = defaultdict(lambda: {True: [], False: []})
    with TemporaryDirectory() as folder, tqdm(total=args.pictures * len(MARKS), unit="picture") as bar:
        for start in range(0, args.pictures, args.batch_size):
            chosen = prompts[start : start + args.batch_size]
            drawing: dict[str, Any] = {"steps": args.steps, "batch_size": args.batch_size, "seed": start}
            for hidden in MARKS:
                key = FIRST_KEY + start
                result = pipe.watermark(chosen, key=key, mark=hidden, **drawing)
                for kind in KINDS:
                    pictures = read_back(result, kind, Path(folder))
                    finding = {"steps": args.find_steps, "batch_size": args.batch_size}
                    sought = pipe.find_watermark(pictures, key=key, **finding)
                    for name in MARKS:
                        found[name, kind][hidden == name] += sought.again(key=key, mark=name).found
                bar.update(len(chosen))
    print(table(found))


def read_back(result: sd35.Result, kind: str, folder: Path) -> Tensor:
    """Save pictures, and give what was read, (B, 3, H, W)."""
    return torch.cat([read(KINDS[kind](picture, folder / "picture")) for picture in result.images])


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", help="to compute in (default float32)")
    parser.add_argument("--pictures", type=int, default=200, help="with each mark (default 200)")
    parser.add_argument("--steps", type=int, default=28, help="to draw a picture in (default 28)")
    parser.add_argument("--find-steps", type=int, default=28, help="back to its noise (default 28)")
    parser.add_argument("--batch-size", type=int, default=10)
    return parser


def table(found: Mapping[tuple[str, str], Mapping[bool, Sequence[bool]]]) -> str:
    """The counts, in Markdown."""
    lines = ["| mark | saved as | found where it is | found where it is not |", "|---|---|---|---|"]
    for (mark, kind), counts in found.items():
        there, absent = (f"{sum(counts[here])} of {len(counts[here])}" for here in (True, False))
        lines.append(f"| {mark.replace('_', ' ')} | {kind} | {there} | {absent} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
