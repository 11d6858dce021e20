"""sd35 verify: right code passes, wrong code and damaged checkpoints do not."""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmdit.embed
import sd35.verify.stages
from mmdit import position_table
from mmdit.blocks import AdaLN
from sd35 import SettingsError
from sd35.cli import main
from sd35.verify import Check, Precision, as_table, check_checkpoint, load_reference, precision_of, run_stages
from sd35.verify.reference import STORED

PARITY = Path(__file__).parents[1] / "parity"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def bounds() -> Iterator[None]:
    """Bounds of rounding are of the models, in float64: they are computed once."""
    rounding, found = sd35.verify.stages._rounding, {}

    def once(run, name):
        if name not in found:
            found[name] = rounding(run, name)
        return found[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd35.verify.stages, "_rounding", once)
        yield


@pytest.fixture(scope="module")
def reference():
    return load_reference()


def failed(checks) -> set[str]:
    return {f"{check.group} {check.stage}" for check in checks if not check.passed}


@pytest.fixture
def processor(other_processor):
    """`with processor(seed)`: this one, by 0, or one that rounds otherwise."""
    return lambda seed: other_processor(seed) if seed else nullcontext()


@pytest.mark.parametrize(
    ("dtype", "seed"),
    [("float32", 0), ("float32", 1), ("float32", 2), ("bfloat16", 0), ("bfloat16", 1), ("float16", 0)],
)
def test_every_stage_passes(dtype: str, seed: int, reference, processor) -> None:
    with processor(seed):
        checks = list(run_stages(reference, CPU, precision_of(dtype, CPU)))
    assert failed(checks) == set()
    assert {check.group for check in checks} == {
        "schedule",
        "clip_l",
        "clip_g",
        "t5",
        "mmdit",
        "vae",
        "generation",
    }
    assert len(checks) > 30
    assert all(check.seconds > 0 for check in checks if check.stage in ("velocity", "image", "picture"))
    if dtype != "float32":  # errors as small as float32's would mean that it was not used
        assert max(check.relative for check in checks) > 2**-10


@pytest.mark.parametrize("seed", [0, 1])
def test_float64_is_exact(seed: int, reference, processor) -> None:
    """But for the sinusoids, which are float32 in every run, and what follows from this processor's own."""
    with processor(seed):
        checks = list(run_stages(reference, CPU, precision_of("float64", CPU)))
    assert failed(checks) == set()
    rounded = {"sinusoids", "velocity, from sigma"}
    assert all(c.relative < 1e-13 for c in checks if c.group != "generation" and c.stage not in rounded)


def of_the_transformer(reference, precision: Precision) -> dict[str, Check]:
    checks = takewhile(lambda check: check.group != "vae", run_stages(reference, CPU, precision))
    return {check.stage: check for check in checks if check.group == "mmdit"}


def test_from_sigma_is_as_exact_as_the_sinusoids(reference, other_processor, monkeypatch) -> None:
    """Its bound grows with what they differ by, and with nothing else."""
    exact = precision_of("float64", CPU)
    with other_processor(1):
        other = of_the_transformer(reference, exact)
    assert 1e-9 < other["velocity, from sigma"].relative < other["velocity, from sigma"].bound < 1e-4

    stored = reference["mmdit_qknorm_dual"]["in/sinusoids"]
    monkeypatch.setattr(mmdit.embed, "timestep_embedding", lambda sigma: stored)
    same = of_the_transformer(reference, exact)
    assert same["sinusoids"].absolute == 0
    assert same["velocity, from sigma"].relative == same["velocity"].relative
    assert same["velocity, from sigma"].bound == same["velocity"].bound


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_mistaken_timestep_shows(dtype: str, reference, monkeypatch) -> None:
    """One that is rounded to an integer: stored sinusoids do not take its place."""
    embedding = mmdit.embed.timestep_embedding
    monkeypatch.setattr(
        mmdit.embed, "timestep_embedding", lambda sigma: embedding((1000 * sigma).floor() / 1000)
    )
    checks = of_the_transformer(reference, precision_of(dtype, CPU))
    wrong = {stage for stage, check in checks.items() if not check.passed}
    assert {"sinusoids", "t_embedder"} <= wrong
    assert dtype == "bfloat16" or {"joint_blocks.3.x", "velocity", "velocity, from sigma"} <= wrong


def test_a_mistake_shows_where_it_is_made(reference, monkeypatch) -> None:
    """The last block's two modulations exchanged, as a file of the other layout would have them."""
    forward = AdaLN.forward
    monkeypatch.setattr(
        AdaLN,
        "forward",
        lambda self, c: forward(self, c)[::-1] if self.n == 2 else forward(self, c),
    )
    checks = list(run_stages(reference, CPU, precision_of("float16", CPU)))
    departed = [check.stage for check in checks if not check.passed and check.group == "mmdit"]
    assert departed == ["joint_blocks.3.x", "final_layer", "velocity", "velocity, from sigma"]
    assert "FAIL" in as_table(checks)


def test_nan_does_not_pass(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sd35.verify.stages.flow, "sigmas", lambda *args: torch.full((29,), float("nan")))
    assert main(["verify", "--device", "cpu"]) == 1
    output = capsys.readouterr().out
    assert "FAIL, the first of them: schedule 28 noise levels" in output


def test_what_ships_is_what_parity_stores(script, tmp_path) -> None:
    """`make_verify.py` makes the shipped file of the stored ones, and nobody forgot to run it."""
    script("tests/parity/make_verify.py").write(PARITY, tmp_path / "made.safetensors")
    made, shipped = load_file(tmp_path / "made.safetensors"), load_file(STORED)
    assert made.keys() == shipped.keys()
    assert all(torch.equal(made[name].float(), shipped[name].float()) for name in made)
    assert STORED.stat().st_size < 2e6


def test_bad_arguments(capsys) -> None:
    with pytest.raises(SettingsError, match="dtype must be one of float64, float32"):
        precision_of("int8", CPU)
    with pytest.raises(SettingsError, match="computes nothing in float64"):
        precision_of("float64", torch.device("mps"))
    assert main(["verify", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err


def test_rounded_convolutions_have_wider_bounds() -> None:
    """On CUDA, where torch computes float32 convolutions in TF32 unless told not to."""
    cuda = torch.device("cuda")
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        rounded = precision_of("float32", cuda)
        torch.backends.cudnn.allow_tf32 = False
        exact = precision_of("float32", cuda)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert rounded.tf32
    assert not exact.tf32
    assert rounded.bound("vae") > 100 * exact.bound("vae")


def test_a_whole_checkpoint_passes(model_folder, capsys) -> None:
    assert main(["verify", "--device", "cpu", "--model", str(model_folder)]) == 0
    output = capsys.readouterr().out
    assert output.count("keys and shapes  pass") == output.count("finite values    pass") == 5
    assert "all 11 checks pass" in output


def findings(path: Path) -> dict[str, tuple[bool | None, str]]:
    return {f"{one.part} {one.check}": (one.passed, one.result) for one in check_checkpoint(path)}


@pytest.fixture
def damaged(model_folder, tmp_path):
    """`damaged(change)`: the transformer's file after `change(tensors)`."""

    def make(change) -> Path:
        source = model_folder / "sd3.5_random.safetensors"
        tensors = load_file(source)
        change(tensors)
        with safe_open(source, "pt") as file:
            save_file(tensors, tmp_path / "damaged.safetensors", file.metadata())
        return tmp_path / "damaged.safetensors"

    return make


PREFIX = "model.diffusion_model."


def test_a_missing_key_is_named(damaged) -> None:
    name = f"{PREFIX}joint_blocks.0.x_block.mlp.fc1.bias"
    found = findings(damaged(lambda tensors: tensors.pop(name)))
    passed, result = found["mmdit keys and shapes"]
    assert passed is False
    assert "joint_blocks.0.x_block.mlp.fc1.bias" in result
    assert "mmdit finite values" not in found
    assert found["vae finite values"][0] is True


def test_a_nan_is_named(damaged) -> None:
    name = f"{PREFIX}final_layer.linear.weight"
    passed, result = findings(damaged(lambda tensors: tensors[name][3, 4].fill_(float("nan"))))[
        "mmdit finite values"
    ]
    assert passed is False
    assert "final_layer.linear.weight" in result


@pytest.mark.parametrize("base_size", [8, 64])
def test_the_position_table_is_compared(damaged, base_size: int) -> None:
    table = position_table(64, 8, base_size=base_size)
    passed, result = findings(damaged(lambda tensors: tensors[f"{PREFIX}pos_embed"].copy_(table)))[
        "mmdit position table"
    ]
    assert passed is True
    assert f"base {base_size}" in result


def test_another_position_table_is_told_and_fails_nothing(damaged) -> None:
    """The columns where the rows should be."""
    table = position_table(64, 8).roll(32, dims=2)
    path = damaged(lambda tensors: tensors[f"{PREFIX}pos_embed"].copy_(table))
    passed, result = findings(path)["mmdit position table"]
    assert passed is None
    assert "differs from the sin-cos formula" in result


def test_what_is_no_model_is_refused_before_anything_runs(tmp_path, capsys) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert main(["verify", "--device", "cpu", "--model", str(tmp_path / "other.safetensors")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "holds no part" in output.err
