"""What a call costs: wall-clock time, processor time, memory.

On a CPU that others use too, wall-clock time depends more on the others than on the call: there the processor
time, summed over threads, is compared. On other devices it is wall-clock time, up to the end of their work.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

Run = Callable[[], object]

ENOUGH = 2.0
"""Seconds, of those that are compared, after which short calls are not repeated any more."""
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Timing:
    """Several calls of one thing."""

    wall: tuple[float, ...]  # seconds, of each call
    cpu: tuple[float, ...]  # likewise, over all threads and processes that it waited for
    peak: int | None  # bytes at most beyond what was held before; None where the system does not count
    on_cpu: bool

    @property
    def compared(self) -> tuple[float, ...]:
        """The seconds that are compared: of processor time on a CPU, else of wall-clock time."""
        return self.cpu if self.on_cpu else self.wall

    @property
    def seconds(self) -> float:
        """The median of those."""
        return median(self.compared)


def alternate(runs: Sequence[Run], repeats: int, device: torch.device, *, warm: bool = True) -> list[Timing]:
    """Call each once to warm up, once for its memory, and then all in turn, `repeats` times.

    In turn, so that what changes on the machine meanwhile changes for all; each round begins with another.
    Short calls, whose times spread most, are repeated up to `repeats` times as often, for `ENOUGH` seconds.

    Args:
        runs: what is called.
        repeats: of each, at least 1.
        device: where it computes.
        warm: False leaves out the first two calls: for what is another process.
    """
    for run in runs if warm else ():
        run()
    peaks = [peak_bytes(run, device) if warm else None for run in runs]
    which = 1 if device.type == "cpu" else 0
    taken: list[list[tuple[float, float]]] = []
    spent = 0.0
    while len(taken) < repeats or (spent < ENOUGH and len(taken) < repeats**2):
        first = len(taken) % len(runs)
        order = [*range(first, len(runs)), *range(first)]
        times = {number: _once(runs[number], device) for number in order}
        taken.append([times[number] for number in range(len(runs))])
        spent += sum(one[which] for one in taken[-1])
    return [
        Timing(
            wall=tuple(wall for wall, _ in column),
            cpu=tuple(cpu for _, cpu in column),
            peak=peak,
            on_cpu=device.type == "cpu",
        )
        for column, peak in zip(zip(*taken, strict=True), peaks, strict=True)
    ]


def _once(run: Run, device: torch.device) -> tuple[float, float]:
    wait_for(device)
    wall, cpu = time.perf_counter(), _cpu_seconds()
    run()
    wait_for(device)
    return time.perf_counter() - wall, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    """Of this process, and of those that it started and waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def wait_for(device: torch.device) -> None:
    """Let a device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_bytes(run: Run, device: torch.device) -> int | None:
    """The most memory that a call needs beyond what was held before it.

    Of a CUDA device, as torch allocates it. Of a CPU, the resident memory of the process, as Linux counts it,
    with what libraries take for themselves; None on other systems.
    """
    if device.type == "cuda":
        wait_for(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        wait_for(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        _give_back()
        RESET.write_text("5")  # the peak is counted from here on, `man 5 proc`
        before = _status("VmRSS")
    except OSError:
        run()
        return None
    run()
    return max(0, _status("VmHWM") - before)


def _give_back() -> None:
    """Let the allocator return what it keeps of freed memory, or a call would use that unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # as it is in glibc
        trim(0)


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])
