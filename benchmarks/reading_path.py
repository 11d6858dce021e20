"""How much source one picture runs through: the functions, files and lines that a reader of it meets.

    python benchmarks/reading_path.py
    python benchmarks/reading_path.py inspect tiny        # or another command of sd35

Counts named functions, and distinct lines of all functions, as they are executed; imports are left aside.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that nothing needs to be installed

from sd35.cli import main as sd35  # noqa: E402

PACKAGES = tuple(f"{ROOT}/{name}/" for name in ("mmdit", "vae", "textenc", "flow", "weights", "sd35"))


class Trace:
    """What was run."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.lines: set[tuple[str, int]] = set()

    def enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        """Called at every call; follows the project's own functions line by line."""
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_NEWLOCALS and code.co_name != "<module>"
        if not is_function or not code.co_filename.startswith(PACKAGES):
            return None
        if not code.co_name.startswith("<"):
            self.functions.add((code.co_filename, code.co_qualname))
        return self.line

    def line(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        """Called at every line."""
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.line

    def told(self, folder: str) -> str:
        """The counts of what lies in a folder."""
        functions = [file for file, _ in self.functions if file.startswith(folder)]
        lines = sum(file.startswith(folder) for file, _ in self.lines)
        return f"{len(functions)} functions of {len(set(functions))} files, {lines} lines"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and count."""
    command = list(sys.argv[1:] if argv is None else argv)
    with TemporaryDirectory() as folder:
        run = Trace()
        sys.settrace(run.enter)
        try:
            sd35(command or ["generate", "a star", "--steps", "2", "-o", f"{folder}/star.png"])
        finally:
            sys.settrace(None)
    print(f"{run.told(str(ROOT))}; of sd35/: {run.told(f'{ROOT}/sd35/')}")


if __name__ == "__main__":
    main()
