"""Whether the packages that sd35 joins are its own, or a file of the user's that bears the name of one."""

import sys
from importlib.util import find_spec
from pathlib import Path

NAMES = ("mmdit", "vae", "textenc", "flow", "weights")


def check_siblings(root: Path) -> None:
    """See that each package comes from beside this one; none of them is imported.

    Raises:
        ImportError: another module of that name is found first; the message says which and what to do.
    """
    for name in NAMES:
        found = sys.modules.get(name)
        spec = find_spec(name) if found is None else found.__spec__
        origin = getattr(found, "__file__", None) if spec is None else spec.origin
        if origin is None or Path(origin).resolve() != (root / name / "__init__.py").resolve():
            raise ImportError(
                f"sd35 needs its own package {name!r}, in {root / name}, and Python finds {origin or 'none'} "
                "first: rename that file or folder, or start Python in another folder"
            )
