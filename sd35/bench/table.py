"""The table of `sd35 bench`, in Markdown."""

from collections.abc import Sequence

from .ceilings import Ceilings
from .clock import Timing
from .stages import Measured


def header(*, beside: bool) -> str:
    """The first two lines; `beside` with columns for another implementation."""
    heads = ["stage", "wall", "CPU", "GFLOP", "of the ceiling", "peak"]
    heads += ["their wall", "CPU", "peak", "theirs / ours", "lowest to highest"] if beside else []
    return "\n".join([_line(heads), _line(["---"] * len(heads))])


def as_row(measured: Measured, ceilings: Ceilings) -> str:
    """The line of a stage."""
    ours, theirs = measured.ours, measured.theirs
    share = None if not measured.flops else measured.flops / ours.seconds / ceilings.flops
    cells = [
        measured.name,
        _spread(ours.wall),
        _spread(ours.cpu),
        f"{measured.flops / 1e9:.1f}" if measured.flops else "",
        "" if share is None else f"{share:.0%}",
        _memory(ours),
    ]
    if theirs is not None:
        each = [b / a for a, b in zip(ours.compared, theirs.compared, strict=True)]
        ratio = f"{theirs.seconds / ours.seconds:.2f}"
        spread = f"{min(each):.2f} to {max(each):.2f}"
        cells += [_spread(theirs.wall), _spread(theirs.cpu), _memory(theirs), ratio, spread]
    return _line(cells)


def _spread(seconds: Sequence[float]) -> str:
    """Median, and lowest to highest."""
    ordered = sorted(seconds)
    unit, times = ("s", 1) if ordered[len(ordered) // 2] >= 1 else ("ms", 1000)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    low, middle, high = (f"{times * value:.3g}" for value in (ordered[0], middle, ordered[-1]))
    return f"{middle} {unit} ({low} to {high})"


def _memory(timing: Timing) -> str:
    return "" if timing.peak is None else f"{timing.peak / 1e6:.0f} MB"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
