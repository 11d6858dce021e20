"""`sd35 verify` on the code paths that this processor has for others, and on processors that it is not.

Libraries choose their code when they are loaded, by what the processor can do; variables of the environment
make them choose what an older one would. Each row runs in a process of its own.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

PROCESSORS = {
    "the oldest": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OMP_NUM_THREADS": "1",
    },
    "AVX2 and two threads": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",  # or two threads burn what they wait
    },
}

PROGRAM = """
import json, torch
from sd35.verify import load_reference, precision_of, run_stages

cpu, reference = torch.device("cpu"), load_reference()
failed = {
    name: [f"{c.group} {c.stage}: {c.relative:.1e}, {c.bound:.1e} allowed" for c in checks if not c.passed]
    for name in ("float32", "float64")
    for checks in [list(run_stages(reference, cpu, precision_of(name, cpu)))]
}
print(json.dumps([torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), failed]))
"""


@pytest.fixture(autouse=True)
def _one_thread_and_no_grad() -> None:
    """Not in the child processes, where the environment says how many."""


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_stage_passes(name: str) -> None:
    environment = os.environ | PROCESSORS[name] | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    capability, threads, failed = json.loads(done.stdout)
    assert failed == {"float32": [], "float64": []}
    assert threads == int(PROCESSORS[name]["OMP_NUM_THREADS"])
    if platform.machine() in ("x86_64", "AMD64"):
        assert capability == {"default": "DEFAULT", "avx2": "AVX2"}[PROCESSORS[name]["ATEN_CPU_CAPABILITY"]]


def test_another_processor_is_another_and_always_the_same(other_processor) -> None:
    """Functions move by a unit at most and are functions still; sums move by their rounding."""
    x = torch.linspace(-3, 3, 1001)
    a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    with other_processor(1) as mode:
        sines, again, product = x.sin(), x[300:].sin(), a @ b
        rows = torch.nn.functional.layer_norm(a, (64,))
        assert torch.equal(torch.ones(3).exp_().log_().neg(), torch.ones(3).exp().log().neg())
    assert {"sin", "mm", "native_layer_norm", "exp_"} <= mode.moved
    assert torch.equal(sines[300:], again)
    moved = (sines != x.sin()).float().mean()
    assert 0.5 < moved < 0.8  # three of four
    above, below = x.sin().nextafter(torch.tensor(2.0)), x.sin().nextafter(torch.tensor(-2.0))
    assert ((sines == x.sin()) | (sines == above) | (sines == below)).all()
    assert not torch.equal(product, a @ b)
    torch.testing.assert_close(product, a @ b, rtol=0, atol=2e-5)
    torch.testing.assert_close(rows, torch.nn.functional.layer_norm(a, (64,)), rtol=2e-7, atol=0)
    with other_processor(2):
        assert not torch.equal(x.sin(), sines)


def test_zero_and_one_stay_exact(other_processor) -> None:
    with other_processor(1):
        exact = torch.tensor([0.0, -torch.inf]).exp(), torch.tensor([0.0]).sin(), torch.tensor([0.0]).cos()
    assert [one.tolist() for one in exact] == [[1, 0], [0], [1]]
