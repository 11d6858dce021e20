"""The table of `sd35 verify`."""

from collections.abc import Sequence

from .runner import Check

WHY = (
    "Processors differ in the last bit of exp, sin and cos, and timestep 1000 makes 1e-4 of it. So stages\n"
    "read the reference's sinusoids; `from sigma` reads this machine's: their difference widens its bound."
)
HEADER = ("stage", "absolute", "relative", "bound", "", "time")


def as_table(checks: Sequence[Check]) -> str:
    """Lay checks out in aligned columns, under the part that each belongs to."""
    width = max(len(check.stage) for check in checks) + 2
    lines, group = [_line(HEADER, width)], ""
    for check in checks:
        if check.group != group:
            group = check.group
            lines.append(group)
        cells = (
            f"  {check.stage}",
            f"{check.absolute:.1e}",
            f"{check.relative:.1e}",
            f"{check.bound:.1e}" if check.bound else "equal",
            "pass" if check.passed else "FAIL",
            f"{1e3 * check.seconds:.1f} ms",
        )
        lines.append(_line(cells, width))
    return "\n".join([*lines, "", WHY])


def _line(cells: tuple[str, ...], width: int) -> str:
    stage, absolute, relative, bound, verdict, time = cells
    return f"{stage:<{width}}{absolute:>10}{relative:>10}{bound:>10}  {verdict:<4}{time:>11}"
