"""Two processes learn and draw what one does; `several.py` is what they run. Four are tried by hand."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sd35

SCRIPT = Path(__file__).with_name("several.py")


def launch(count: int, *command: object) -> subprocess.CompletedProcess:
    """Start processes that know of each other."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run([*start, *map(str, command)], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def folder(model_folder, pictures, tmp_path_factory) -> Path:
    """What two processes wrote, and what this one did."""
    folder = tmp_path_factory.mktemp("several")
    count = int(os.environ.get("SD35_PROCESSES", "2"))
    ended = launch(count, SCRIPT, model_folder, pictures, folder)
    assert ended.returncode == 0, ended.stderr
    spec = importlib.util.spec_from_file_location("several", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.train(model_folder, pictures, folder, "one")
    return folder


def apart(folder: Path, kind: str) -> float:
    """The largest difference of the weights that several processes and one came to."""
    ours, theirs = (load_file(folder / f"{kind}-{name}" / "state.safetensors") for name in ("one", "several"))
    assert ours.keys() == theirs.keys()
    return max((ours[key] - theirs[key]).abs().max().item() for key in ours if key.startswith("weight"))


@pytest.mark.parametrize(("kind", "limit"), [("lora", 1e-12), ("full", 1e-12), ("single", 4e-4)])
def test_several_processes_learn_what_one_does(folder, kind, limit) -> None:
    """In float32, Adam makes steps of up to the learning rate, 0.01, out of gradients near zero."""
    assert apart(folder, kind) < limit


def test_several_processes_tell_the_losses_of_one(folder) -> None:
    def rows(name):
        return list(csv.DictReader((folder / f"single-{name}" / "log.csv").open()))

    for ours, theirs in zip(rows("one"), rows("several"), strict=True):
        for column in ("loss", "gradient_norm", "validation"):
            if ours[column]:
                assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-5), column


def test_what_several_have_saved_goes_on_in_one(folder, model_folder, pictures) -> None:
    """The state that FSDP wrote in parts is one file, and so are the weights."""
    places = {"cache": folder / "cache", "dtype": torch.float64, "device": "cpu", "resume": True}
    more = {"steps": 4, "batch_size": 4, "learning_rate": 0.01, "schedule": "constant", "validate_every": 3}
    for name in ("one", "several"):
        path = sd35.train_full(model_folder, pictures, folder / f"full-{name}", places=places, **more)
    assert apart(folder, "full") < 1e-12
    assert sd35.load(path, vae=model_folder, text_encoders=model_folder).size == (32, 32)


def test_tokens_heads_and_branches_can_be_shared(folder) -> None:
    found = load_file(folder / "sampled.safetensors")
    assert torch.equal(found["back"], found["alone"])
    for name in ("ulysses", "tensor"):
        assert (found[name] - found["alone"]).abs().max() < 1e-12 * found["alone"].abs().max(), name
    assert (found["guided, shared"] - found["guided"]).abs().max() < 1e-5


def test_a_process_that_is_lost_ends_the_run_with_a_line(model_folder, pictures, tmp_path) -> None:
    command = ("-m", "sd35", "train", "lora", "-m", model_folder, "--data", pictures, "-o", tmp_path / "run")
    dying = (
        "import os, sys, sd35.train.loop as loop; real = loop.save_state\n"
        "def save(*a): real(*a); os.environ['RANK'] == '1' or None\n"
        "from sd35.train.world import World; average = World.average\n"
        "calls = []\n"
        "def dies(self, tensors):\n"
        "    calls.append(1)\n"
        "    if self.rank == 1 and len(calls) == 4: os._exit(9)\n"
        "    average(self, tensors)\n"
        "World.average = dies\n"
        "from sd35.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    script = tmp_path / "dying.py"
    script.write_text(dying)
    ended = launch(2, script, *command[2:], "--steps", 8, "--rank", 2, "--batch-size", 2, "--save-every", 2)
    assert ended.returncode != 0
    lines = [line for line in ended.stderr.splitlines() if line.startswith("sd35 train lora: error")]
    told = "another process of this run has ended: go on from the last save with --resume"
    assert set(lines) <= {
        f"sd35 train lora: error: {told}"
    }  # torchrun may end the others before they have said it
    assert int(load_file(tmp_path / "run" / "state.safetensors")["step"]) == 2
