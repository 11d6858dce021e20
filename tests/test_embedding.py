"""Each leaf package works when copied alone into another project, and no import has a side effect.

All of it in processes of their own, since this one has imported everything already.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEAVES = ("mmdit", "vae", "textenc", "flow")
PACKAGES = (*LEAVES, "weights", "sd35")

TINY = {
    "mmdit": """
from research.vendored.mmdit import MMDiT, MMDiTConfig, init_weights
model = MMDiT(MMDiTConfig(dim=64, depth=2, num_heads=1, pos_embed_size=4, context_dim=8, pooled_dim=4))
init_weights(model, torch.Generator().manual_seed(0))
velocity = model(torch.ones(1, 16, 4, 6), torch.ones(1), torch.ones(1, 3, 8), torch.ones(1, 4))
assert velocity.shape == (1, 16, 4, 6)
""",
    "vae": """
from research.vendored.vae import VAE, VAEConfig
vae = VAE(VAEConfig(channels=(32, 32), num_res_blocks=1, latent_channels=4))
assert vae.decode(vae.encode(torch.zeros(1, 3, 4, 4))).shape == (1, 3, 4, 4)
""",
    "textenc": """
from research.vendored.textenc import CLIP, CLIPConfig
config = CLIPConfig(
    vocab_size=9, positions=5, dim=8, depth=2, num_heads=1, mlp_dim=16, projection_dim=None, activation="gelu"
)
output = CLIP(config)(torch.zeros(1, 5, dtype=torch.int64))
assert output.penultimate.shape == (1, 5, 8)
""",
    "flow": """
from research.vendored import flow
x = torch.ones(2, 3)
end = flow.solve(lambda x, sigma: torch.ones_like(x), x, flow.sigmas(4), solver="euler")
assert torch.allclose(end, torch.zeros(2, 3), atol=1e-6)
""",
}
"""A small run of each package, under the parent `research.vendored`."""

HOSTILE = "raise RuntimeError('the user has a file of this name, and the package took it for its own')\n"


SERVER = """
import json, os, runpy, sys, traceback
import torch

def become(script):
    os.chdir(script["folder"])
    os.environ.clear()
    os.environ.update(script["environment"])
    for number, name in enumerate(("stdout", "stderr"), start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.path[0] = script["folder"]
    sys.argv = ["script.py", *script["arguments"]]
    status = 1
    try:
        runpy.run_path("script.py", run_name="__main__")
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        become(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""A process that has imported torch, and nothing of this project, and forks itself for each script: importing
torch takes longer than all that is tested here."""


@dataclass(frozen=True)
class Done:
    """How a script ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Callable[..., Done]]:
    """run(script, folder, *arguments, **environment) runs a script in a folder, where Python looks first."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    inherited["OMP_NUM_THREADS"] = "1"
    home = tmp_path_factory.mktemp("server")
    (home / "server.py").write_text(SERVER)
    server = subprocess.Popen(
        [sys.executable, home / "server.py"],
        cwd=home,
        env=inherited,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(script: str, folder: Path, *arguments: str, **environment: str) -> Done:
        (folder / "script.py").write_text(script)
        told = {"folder": str(folder), "arguments": arguments, "environment": inherited | environment}
        server.stdin.write(json.dumps(told) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return Done(status, (folder / "stdout").read_text(), (folder / "stderr").read_text())

    with server:
        yield run


@pytest.mark.parametrize("package", LEAVES)
def test_a_leaf_package_works_alone_under_another_parent(run, package, tmp_path):
    vendored = tmp_path / "research" / "vendored"
    shutil.copytree(ROOT / package, vendored / package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (vendored.parent, vendored):
        (folder / "__init__.py").touch()
    for name in PACKAGES:  # the user's own modules, beside the script and beside the copy
        (tmp_path / f"{name}.py").write_text(HOSTILE)
        if name != package:
            (vendored / f"{name}.py").write_text(HOSTILE)
    siblings = f"assert not set(sys.modules) & {set(PACKAGES)!r}\n"
    done = run(f"import sys, torch\n{TINY[package]}\n{siblings}", tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_hostile_modules_are_hostile(run, tmp_path):
    (tmp_path / "vae.py").write_text(HOSTILE)
    assert "took it for its own" in run("import vae", tmp_path).stderr


WATCH = """
import importlib, random, socket, sys
sys.path.insert(0, sys.argv[1])

def refuse(*args, **kwargs):
    raise AssertionError("an import opens a connection")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse

import torch

def state():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "torch's generator": torch.get_rng_state().tolist(),
        "python's generator": random.getstate(),
        "TF32 in matmul": torch.backends.cuda.matmul.allow_tf32,
        "TF32 in cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "matmul precision": torch.get_float32_matmul_precision(),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "CUDA": torch.cuda.is_initialized(),
    }

for name in sys.argv[2:]:
    before = state()
    importlib.import_module(name)
    changed = [thing for thing, value in state().items() if value != before[thing]]
    assert not changed, f"importing {name} changes {changed}"

present = {"diffusers", "transformers", "accelerate"} & set(sys.modules)
assert not present, f"{present} was imported"
"""


def modules_of(package: str) -> list[str]:
    """Every module by its dotted name, but those that run when imported."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / package).rglob("*.py")))
    return [".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__"]


def test_importing_everything_has_no_side_effect(run, tmp_path):
    """Every module of every package, one after another; one that changes something is named."""
    modules = [module for package in PACKAGES for module in modules_of(package)]
    assert {"mmdit.model", "weights.hub", "sd35.cli"} <= set(modules)
    done = run(WATCH, tmp_path, str(ROOT), *modules, HF_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import torch; torch.manual_seed(0)", 'importing rude changes ["torch\'s generator"]'),
        ("import torch; torch.set_default_dtype(torch.float64)", "changes ['default dtype']"),
        ("import socket; socket.create_connection(('localhost', 80))", "an import opens a connection"),
        ("import sys; sys.modules['diffusers'] = sys", "{'diffusers'} was imported"),
    ],
)
def test_a_side_effect_would_show(run, source, message, tmp_path):
    (tmp_path / "rude.py").write_text(source)
    done = run(WATCH, tmp_path, str(tmp_path), "rude")
    assert done.returncode == 1
    assert message in done.stderr


def test_a_script_begins_with_torch_and_nothing_of_this_project(run, tmp_path):
    done = run(f"import sys; print('torch' in sys.modules, set(sys.modules) & {{*{PACKAGES!r}}})", tmp_path)
    assert done == Done(0, "True set()\n", "")
