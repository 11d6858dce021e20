"""Tell what a source holds and lacks: parts, variants, parameters, dtypes, bytes, what to fetch.

The exit status is 0 where every part that was found would load, and 1 where one would not, or where a LoRA
fits none of the released models.
"""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..taps import TapInfo

SUMMARY = "tell what a file, a folder or a repository holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="tiny, a .safetensors or .gguf file, a LoRA, a folder, or owner/name[@revision] on the Hugging "
        "Face Hub",
    )
    parser.add_argument("--values", action="store_true", help="read every weight, report NaN and infinities")
    parser.add_argument(
        "--taps", action="store_true", help="list every tensor that `sd35.capture` can see, with its shape"
    )
    parser.add_argument("--json", action="store_true", help="print the report, or the taps, as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    import weights

    if args.taps:
        print_taps(taps_of(args.source), as_json=args.json)
        return 0
    try:
        report = weights.inspect(args.source, values=args.values)
    except weights.SourceError:
        if not weights.is_adapter(args.source):
            raise
        adapter = weights.inspect_adapter(args.source)
        print(json.dumps(adapter.as_dict(), indent=2) if args.json else adapter)
        return 0 if adapter.fits else 1
    print(json.dumps(report.as_dict(), indent=2) if args.json else report)
    return 0 if all(part.is_complete for part in report.components.values()) else 1


def taps_of(source: str) -> "dict[str, list[TapInfo] | None]":
    """The taps of each part, for one picture of the size that the model was trained at.

    Returns:
        The part to its taps, or to None for a ControlNet, which does not run without the base it steers.
    """
    from weights import resolve
    from weights.build import build_component

    from ..size import RELEASED, Size, native_size
    from ..taps import list_taps

    components = resolve(source).components
    size = native_size(components["mmdit"]) if "mmdit" in components else Size(RELEASED, RELEASED)
    return {
        part: None
        if part == "controlnet"
        else list_taps(build_component(component), width=size.width, height=size.height)
        for part, component in components.items()
    }


def print_taps(taps: "dict[str, list[TapInfo] | None]", *, as_json: bool) -> None:
    """Print the taps of each part, one a line or as JSON, where a part without a list is null."""
    if as_json:
        plain = {part: own and [asdict(tap) for tap in own] for part, own in taps.items()}
        print(json.dumps(plain, indent=2))
        return
    for part, own in taps.items():
        print(part)
        if own is None:
            print("  not listed: it runs beside the base that it steers, not by itself")
        for tap in own or ():
            print(f"  {tap}")
