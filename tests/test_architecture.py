"""The import arrows between the packages, who may use which library, and other rules of the house.

mmdit   vae   textenc   flow      import none of the others
  ^      ^       ^        ^
  +------+-------+        |       weights -> mmdit, vae, textenc, in weights/build.py and load.py only
         ^                |
         +---- sd35 ------+       sd35 -> all, nothing -> sd35
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEAVES = ("mmdit", "vae", "textenc", "flow")
PACKAGES = (*LEAVES, "weights", "sd35")
"""Lines after which a file is two files."""

ARROWS = {
    "mmdit": {},
    "vae": {},
    "textenc": {},
    "flow": {},
    "weights": dict.fromkeys(("mmdit", "vae", "textenc"), ("weights/build.py", "weights/load.py")),
    "sd35": dict.fromkeys((*LEAVES, "weights"), ("sd35/",)),
}
"""Package to the siblings it may import, each with the files or folders where."""

LIBRARIES = {
    "torch": tuple(f"{package}/" for package in PACKAGES),
    "einops": ("mmdit/", "textenc/"),
    "numpy": ("vae/image.py", "sd35/"),
    "PIL": ("vae/image.py", "sd35/"),
    "tokenizers": ("textenc/",),
    "safetensors": ("weights/", "sd35/"),
    "huggingface_hub": ("weights/",),
    "tqdm": ("sd35/",),
    "cv2": ("sd35/adapters/drawing.py",),  # where edges are asked for
    "scipy": ("flow/coupling.py",),  # where optimal transport is asked for
    "bitsandbytes": ("sd35/train/optimizer.py",),  # where 8-bit Adam is asked for
}
"""Library to the files or folders that may import it. What is not listed, nobody may."""

UNSAFE = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
GLOBAL_STATE = (
    "load",
    "save",
    "manual_seed",
    "seed",
    "set_default_dtype",
    "set_default_device",
    "set_grad_enabled",
    "set_float32_matmul_precision",
)
"""Functions of torch that unpickle, or that change what other code sees. A Generator's own are fine."""

FORBIDDEN = ("__import__", "exec", "eval")
FOR_SD35_ONLY = ("print", "import_module")


@dataclass(frozen=True)
class Import:
    """One imported module. Relative ones are given in full, and are marked."""

    module: str
    relative: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def imports_of(path: PurePosixPath, tree: ast.AST) -> Iterator[Import]:
    """Every import of a file, at whatever depth: inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, relative=False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield Import(node.module or "", relative=False)
                continue
            # `..a` in p/q/r.py is p.a; one dot too many leaves the package, and nothing stays in front
            above = path.parent.parts[: len(path.parent.parts) - node.level + 1]
            yield Import(".".join([*above, *([node.module] if node.module else [])]), relative=True)


def allowed(path: PurePosixPath, places: tuple[str, ...]) -> bool:
    """Whether a file is one of the places, or lies in one of them that is a folder."""
    name = str(path)
    return any(name.startswith(place) if place.endswith("/") else name == place for place in places)


def wrong_imports(path: PurePosixPath, tree: ast.AST) -> Iterator[str]:
    """What a file of a package imports and may not."""
    package = path.parts[0]
    for found in imports_of(path, tree):
        if found.relative:
            if found.top != package:
                yield f"a relative import leaves {package}"
        elif found.top == package:
            yield f"{found.module}: a package imports its own files by relative imports"
        elif found.top in PACKAGES:
            if not allowed(path, ARROWS[package].get(found.top, ())):
                yield f"{found.module}: no arrow from here to {found.top}"
        elif found.top in UNSAFE:
            yield f"{found.module} runs what it reads"
        elif found.top not in sys.stdlib_module_names and not allowed(path, LIBRARIES.get(found.top, ())):
            yield f"{found.module} is not to be imported here"


def wrong_calls(path: PurePosixPath, tree: ast.AST) -> Iterator[str]:
    """What a file of a package calls and may not."""
    restored = under_fork_rng(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            yield from (f"torch.{a.name}" for a in node.names if a.name in GLOBAL_STATE)
        if isinstance(node, ast.Attribute):
            of_torch = name_of(node.value) == "torch" and node.attr in GLOBAL_STATE
            yield from [f"torch.{node.attr}"] if of_torch and node not in restored else []
        if isinstance(node, ast.Call):
            called = name_of(node.func)
            if called in FORBIDDEN or (called in FOR_SD35_ONLY and path.parts[0] != "sd35"):
                yield called


def name_of(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def under_fork_rng(tree: ast.AST) -> set[ast.AST]:
    """All that stands inside `with torch.random.fork_rng():`, which puts the global generator back."""
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.With))
    forks = (block for block in blocks if "fork_rng" in ast.unparse(block.items[0].context_expr))
    return {node for block in forks for node in ast.walk(block)}


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def of_package(path: Path) -> tuple[PurePosixPath, ast.AST]:
    return PurePosixPath(path.relative_to(ROOT).as_posix()), ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_arrows(package):
    found = {path.name: list(wrong_imports(*of_package(path))) for path in files(package)}
    assert found, f"{package} has no files"
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_unpickles_or_touches_global_state(package):
    found = {path.name: list(wrong_calls(*of_package(path))) for path in files(package)}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mmdit/model.py", "import vae"),
        ("mmdit/model.py", "from vae.blocks import Attention"),
        ("mmdit/model.py", "def f():\n    import flow"),
        ("mmdit/model.py", "from mmdit.blocks import AdaLN"),
        ("mmdit/model.py", "from ..vae import VAE"),
        ("mmdit/model.py", "from .. import vae"),
        ("flow/solvers/table.py", "from ...weights import load"),
        ("flow/path.py", "import numpy"),
        ("flow/path.py", "import einops"),
        ("vae/blocks.py", "from PIL import Image"),
        ("weights/hub.py", "import mmdit"),
        ("weights/load.py", "import flow"),
        ("weights/load.py", "import sd35"),
        ("textenc/t5.py", "import transformers"),
        ("sd35/pipeline.py", "import diffusers"),
        ("sd35/pipeline.py", "import huggingface_hub"),
        ("sd35/pipeline.py", "if TYPE_CHECKING:\n    import tokenizers"),
        ("weights/file.py", "import pickle"),
    ],
)
def test_a_wrong_import_would_show(path, source):
    assert len(list(wrong_imports(PurePosixPath(path), ast.parse(source)))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mmdit/model.py", "from .blocks import AdaLN\nimport torch.nn.functional as F\nimport math"),
        ("flow/solvers/table.py", "from ..path import noised\nfrom .base import Solver"),
        ("weights/load.py", "from vae import VAE"),
        ("sd35/tiny/recipe.py", "import flow.schedule\nfrom ..files import write"),
    ],
)
def test_a_right_import_would_not(path, source):
    assert not list(wrong_imports(PurePosixPath(path), ast.parse(source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("weights/file.py", "torch.load(path)"),
        ("weights/file.py", "from torch import load"),
        ("sd35/noise.py", "torch.manual_seed(0)"),
        ("vae/model.py", "print('decoding')"),
        ("weights/hub.py", "import_module('sd35')"),
    ],
)
def test_a_wrong_call_would_show(path, source):
    assert len(list(wrong_calls(PurePosixPath(path), ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source", ["generator.manual_seed(0)", "with torch.random.fork_rng():\n    torch.manual_seed(0)"]
)
def test_a_seed_that_nobody_else_sees_is_fine(source):
    assert not list(wrong_calls(PurePosixPath("sd35/noise.py"), ast.parse(source)))


LAYERS = (
    ("errors", "version", "noise", "siblings"),
    ("kinds", "fields", "device", "size", "marks", "units"),
    ("guidance", "images", "loras", "shown", "prompts", "fitting", "schedules"),
    ("controls", "opening", "presets"),
    ("inputs",),
    ("settings",),
    ("methods", "documented"),
    ("saved",),
    ("evaluation",),
    ("conditions",),
    ("velocity", "adapters", "memory", "cache", "parallel"),
    ("model",),
    ("found",),
    ("taps",),
    ("attention",),
    ("train",),
    ("tasks",),
    ("report", "verify"),
    ("pipeline", "needs"),
    ("loading",),
    ("bench",),
    ("tiny",),
    ("cli",),
    ("__init__", "__main__"),
)
"""The files and folders of sd35/, from the bottom to the top. A file imports from its own layer and from
those below; no circle within one."""


def room_of(module: str) -> str:
    """The file or folder of sd35/ that a module lies in."""
    return [*module.split("."), "__init__"][1]


def modules_of_sd35() -> dict[str, set[str]]:
    """Each module of sd35/ and what it imports of sd35/, at whatever depth of its code."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files("sd35")
    }
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        place, tree = of_package(path)
        found[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                above = place.parent.parts[: len(place.parent.parts) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
                inner = {f"{base}.{alias.name}" for alias in node.names} & paths.keys()
                found[name] |= inner if len(inner) == len(node.names) else {*inner, base}
        found[name] -= {name}
    return found


def test_sd35_has_one_way_down():
    level = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
    upward = [
        f"{name} imports {other}"
        for name, imported in modules_of_sd35().items()
        for other in imported
        if name != "sd35" and level[room_of(other)] > level[room_of(name)]
    ]
    assert upward == []


def test_sd35_has_no_circle():
    """Not of files, and not of folders: what a folder imports does not import it."""
    imports = {name: imported for name, imported in modules_of_sd35().items() if name != "sd35"}
    packages = {name for name in imports if any(other.startswith(f"{name}.") for other in imports)}
    list(TopologicalSorter({n: i for n, i in imports.items() if n not in packages}).static_order())
    rooms: dict[str, set[str]] = {}
    for name, imported in imports.items():
        rooms.setdefault(room_of(name), set()).update(room_of(other) for other in imported)
    list(TopologicalSorter({room: others - {room} for room, others in rooms.items()}).static_order())
