"""Tell what a source holds and lacks: parts, variants, parameters, dtypes, bytes, what to fetch.

The exit status is 0 where every part that was found would load, and 1 where one would not.
"""

import argparse
import json

SUMMARY = "tell what a file, a folder or a repository holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="tiny, a .safetensors file, a folder, or owner/name[@revision] on the Hugging Face Hub",
    )
    parser.add_argument("--values", action="store_true", help="read every weight, report NaN and infinities")
    parser.add_argument(
        "--taps", action="store_true", help="list every tensor that `sd35.capture` can see, with its shape"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    import weights

    if args.taps:
        print_taps(args.source)
        return 0
    report = weights.inspect(args.source, values=args.values)
    print(json.dumps(report.as_dict(), indent=2) if args.json else report)
    return 0 if all(part.is_complete for part in report.components.values()) else 1


def print_taps(source: str) -> None:
    """Print the taps of each part, for one picture of the size that the model was trained at."""
    from weights import resolve
    from weights.load import build_component

    from ..size import RELEASED, Size, native_size
    from ..taps import list_taps

    found = resolve(source)
    size = Size(RELEASED, RELEASED)
    if "mmdit" in found.components:
        size = native_size(found.component("mmdit"))
    for part, component in found.components.items():
        print(f"{part}")
        for tap in list_taps(build_component(component), width=size.width, height=size.height):
            print(f"  {tap}")
