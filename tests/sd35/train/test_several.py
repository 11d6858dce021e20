"""Two and four processes learn and draw what one does; `several.py` is what they run."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import sd35


@pytest.fixture(scope="module")
def alone(script) -> ModuleType:
    """several.py, in this process."""
    return script("tests/sd35/train/several.py")


@pytest.fixture(scope="module")
def folder(model_folder, pictures, tmp_path_factory, alone) -> Path:
    """What one process wrote, and several; what four have begun, and two and one ended; what was killed."""
    given = model_folder, pictures, tmp_path_factory.mktemp("several")
    count = int(os.environ.get("SD35_PROCESSES", "2"))
    groups = [f"{count},many,train,sample", "2,two,go_on"] if count != 2 else ["2,two,train,sample,go_on"]
    alone.train(*given, "one")
    command = [sys.executable, alone.__file__, *given, "4,four,cut", *groups, "killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(map(str, command), capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    alone.go_on(*given, "one")
    return given[-1]


@pytest.fixture
def several() -> str:
    """The name of what several processes did; two, if not told otherwise."""
    return "two" if os.environ.get("SD35_PROCESSES", "2") == "2" else "many"


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor], start: str) -> float:
    """The norm of the difference of all tensors of a kind, relative to theirs."""
    names = [name for name in theirs if name.startswith(start)]
    assert names
    assert ours.keys() == theirs.keys()
    found, expected = (torch.cat([one[name].flatten() for name in names]) for one in (ours, theirs))
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", ["lora", "full", "lora32", "full32"])
def test_several_processes_learn_what_one_does(folder, alone, several, kind) -> None:
    """Gradients and weights of the first step and of the last, by DDP and by FSDP2."""
    limit = 1e-6 if "32" in kind else 1e-12
    ours, theirs = (load_file(folder / f"{kind}-{one}.safetensors") for one in (several, "one"))
    for what in ("gradient", "weight"):
        for step in (1, alone.STEPS):
            assert apart(ours, theirs, f"{what} {step}/") < limit, (what, step)


def test_several_processes_tell_the_losses_of_one(folder, alone, several) -> None:
    def rows(name):
        return list(csv.DictReader((folder / f"full32-{name}" / "log.csv").open()))

    ours, theirs = rows("one"), rows(several)
    assert len(ours) == len(theirs) == alone.STEPS
    for column, measured in (("loss", alone.STEPS), ("gradient_norm", alone.STEPS), ("validation", 1)):
        filled = [number for number, row in enumerate(ours) if row[column]]
        assert len(filled) == measured, column
        assert [number for number, row in enumerate(theirs) if row[column]] == filled, column
        for number in filled:
            expected, found = (float(one[number][column]) for one in (ours, theirs))
            assert found == pytest.approx(expected, rel=2e-6), (column, number)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", ["four then two", "four then one"])
def test_what_four_have_saved_goes_on_in_two_and_in_one(folder, alone, kind, name) -> None:
    expected, found = (load_file(folder / f"{kind}-{one}" / "state.safetensors") for one in ("one", name))
    assert int(found["step"]) == alone.STEPS
    for what in ("weight", "optimizer"):
        assert apart(found, expected, what) < 1e-12, what


def test_what_several_have_written_is_a_model(folder, several, model_folder) -> None:
    """The state that FSDP writes in parts is one file, and so are the weights."""
    path = folder / f"full-{several}" / "model.safetensors"
    assert sd35.load(path, vae=model_folder, text_encoders=model_folder).size == (32, 32)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_ten_steps_of_a_picture_are_those_of_one_process(folder, several, dtype, limit) -> None:
    """Ulysses, tensor parallelism, and the halves of guidance."""
    found = load_file(folder / f"{several}.safetensors")
    assert torch.equal(found[f"back {dtype}"], found[f"alone {dtype}"])
    for ours, theirs in (("ulysses", "alone"), ("tensor", "alone"), ("shared", "guided")):
        difference = found[f"{ours} {dtype}"] - found[f"{theirs} {dtype}"]
        assert difference.norm() < limit * found[f"{theirs} {dtype}"].norm(), ours


def test_a_process_that_is_killed_ends_the_run_with_a_line(folder, model_folder, pictures) -> None:
    """Even the main one, which writes; what it had saved goes on in one."""
    lines = (folder / "killed.txt").read_text().splitlines()
    told = "another process of this run has ended: go on from the last save with --resume"
    assert [line for line in lines if line.startswith("sd35 train")] == [f"sd35 train full: error: {told}"]
    run = folder / "killed"
    left = {path.name for path in run.iterdir()}
    assert left == {"cache", "log.csv", "model.safetensors", "state.safetensors"}
    assert int(load_file(run / "state.safetensors")["step"]) == 2
    places = {"resume": True, "device": "cpu"}
    sd35.train_full(model_folder, pictures, run, places=places, steps=3, batch_size=2, schedule="constant")
    assert int(load_file(run / "state.safetensors")["step"]) == 3
