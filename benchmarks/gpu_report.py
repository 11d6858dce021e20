"""What a run has found so far, in a table that is on disk after every row, and the time that is left."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

HEADS = ("row", "median", "lowest to highest", "TFLOP/s", "of the floor", "peak GB", "remark")


class Timing(NamedTuple):
    """Seconds of one call."""

    median: float
    low: float
    high: float
    repeats: int


@dataclass
class Report:
    """Rows as they are found; each is printed and written at once, since the next may end the run."""

    folder: Path | None
    facts: dict[str, Any] = field(default_factory=dict)
    """What holds for the whole run: card, versions, ceilings."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        name: str,
        timing: Timing | None = None,
        *,
        flops: float | None = None,
        peak: float | None = None,
        remark: str = "",
        **more: Any,
    ) -> None:
        """Note one row.

        Args:
            name: what was run.
            timing: how long a call took.
            flops: floating-point operations of a call; the floor is what they take at the measured bf16 rate.
            peak: the most memory that was allocated, in GB of 10⁹ bytes.
            remark: what else there is to say, in a few words.
            more: further values for the JSON file.
        """
        row: dict[str, Any] = {"row": name, "remark": remark, "peak_gb": peak, "flops": flops, **more}
        if timing is not None:
            row |= timing._asdict()
            if flops:
                row["tflops"] = flops / timing.median / 1e12
                if ceiling := self.facts.get("bf16 GEMM, TFLOP/s"):
                    row["of_floor"] = row["tflops"] / ceiling
        self.rows.append(row)
        print(" | ".join(cell for cell in cells(row) if cell), flush=True)
        self.write()

    def text(self, name: str, content: str) -> None:
        """Write a file of its own beside the table, for what is too long for a row."""
        if self.folder is not None:
            with (self.folder / name).open("a") as file:
                file.write(content + "\n")

    def write(self) -> None:
        """Bring the files up to date."""
        if self.folder is not None:
            content = {"facts": self.facts, "rows": self.rows}
            (self.folder / "gpu.json").write_text(json.dumps(content, indent=1, default=str) + "\n")
            (self.folder / "gpu.txt").write_text(self.table() + "\n")

    def table(self) -> str:
        """Everything as Markdown."""
        lines = [f"- {name}: {value}" for name, value in self.facts.items()]
        body = [HEADS, ("---",) * len(HEADS), *(cells(row) for row in self.rows)]
        return "\n".join([*lines, "", *("| " + " | ".join(row) + " |" for row in body)])


def cells(row: dict[str, Any]) -> Sequence[str]:
    """A row as the table shows it."""
    timed = "median" in row
    return (
        row["row"],
        seconds(row["median"]) if timed else "",
        f"{seconds(row['low'])} to {seconds(row['high'])}, {row['repeats']}" if timed else "",
        f"{row['tflops']:.0f}" if "tflops" in row else "",
        f"{row['of_floor']:.0%}" if "of_floor" in row else "",
        f"{row['peak_gb']:.2f}" if row["peak_gb"] is not None else "",
        row["remark"],
    )


def seconds(value: float) -> str:
    """A time in the unit that shows three digits or more."""
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.2f} ms"


def measure_each(
    runs: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    budget: float,
    most: int,
    warmups: int,
) -> list[Timing]:
    """The times of one call of each, in turn; after warming up, three calls or more, or only `most`."""
    taken = [[once(run, device) for _ in range(warmups)][-1] for run in runs]
    repeats = min(most, max(3, int(budget / max(sum(taken), 1e-9))))
    times = [[once(run, device) for run in runs] for _ in range(repeats)]
    return [
        Timing(statistics.median(column), min(column), max(column), repeats)
        for column in zip(*times, strict=True)
    ]


def once(run: Callable[[], object], device: torch.device) -> float:
    """The seconds of one call, by the device's own clock where it has one."""
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_of(run: Callable[[], object], device: torch.device) -> float | None:
    """The most memory that is allocated during a call, weights included, in GB; None where nobody counts."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9
