"""Write the compact key lists in this folder from full manifests of the official checkpoints.

    python tests/keys/make.py MANIFESTS

MANIFESTS is a folder of JSON files with {"tensors": {key: [shape, dtype]}}. Keys that differ only in one
number, and have the same shape and dtype, become one line: `{}` stands for the numbers.
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] to "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def compact(tensors: dict[str, tuple[list[int], str]]) -> list[str]:
    """Lines of "key shape dtype [numbers]"."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    lines = []
    for key, (shape, dtype) in tensors.items():
        size = "x".join(map(str, shape)) or "scalar"
        match = re.search(r"\.(\d+)\.", key)
        if match is None:
            lines.append(f"{key} {size} {dtype}")
        else:
            template = f"{key[: match.start(1)]}{{}}{key[match.end(1) :]}"
            groups.setdefault((template, size, dtype), []).append(int(match[1]))
    return sorted(lines + [" ".join((*group, ranges(numbers))) for group, numbers in groups.items()])


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        manifest = json.loads(path.read_text())
        if "tensors" in manifest:
            (HERE / f"{path.name.removesuffix('.json')}.txt").write_text(
                "\n".join(compact(manifest["tensors"])) + "\n"
            )
