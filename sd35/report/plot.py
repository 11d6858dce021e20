"""Plots as SVG, whose colours and letters are the style sheet's."""

from collections.abc import Sequence
from math import ceil, floor, isfinite, log10
from typing import NamedTuple

from ..attention.picture import COLOURS
from .html import Html, tag

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40
TICKS = 5
LABEL_ROOM = 28  # between the labels of two rows, where letters are largest


class Series(NamedTuple):
    """A line of a plot."""

    name: str
    values: Sequence[float]
    style: str  # a class of the style sheet: "c0" to "c3", and "dashed" beside it


def line_plot(series: Sequence[Series], *, x: str, y: str) -> Html:
    """Lines over steps 0, 1, ..., with a legend.

    Args:
        series: at least one, of finite values.
        x: what the horizontal axis counts.
        y: what the vertical axis measures.
    """
    ticks = _ticks(max(max(one.values) for one in series))
    steps = max(2, max(len(one.values) for one in series))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(step: int, value: float) -> tuple[float, float]:
        return LEFT + wide * step / (steps - 1), TOP + high * (1 - value / ticks[-1])

    grid = [
        [
            tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=place(0, tick)[1], y2=place(0, tick)[1], class_="grid"),
            tag("text", f"{tick:g}", x=LEFT - 8, y=place(0, tick)[1], dy="0.32em", text_anchor="end"),
        ]
        for tick in ticks
    ]
    every = max(1, ceil((steps - 1) / 8))
    numbers = [
        tag("text", str(step), x=place(step, 0)[0], y=HEIGHT - BOTTOM, dy="1.4em", text_anchor="middle")
        for step in range(0, steps, every)
    ]
    title = tag("text", x, x=LEFT + wide / 2, y=HEIGHT - 4, text_anchor="middle", class_="axis")
    lines = [_line(one, [place(*point) for point in enumerate(one.values)]) for one in series]
    svg = tag("svg", grid, numbers, title, lines, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=y)
    legend = tag("ul", [tag("li", one.name, class_=one.style) for one in series], class_="legend")
    return tag("figure", tag("figcaption", y), svg, legend, class_="plot")


def heat_grid(rows: Sequence[Sequence[float]], *, row: str, column: str, title: str) -> Html:
    """A table of positive numbers as colours, on a logarithmic scale from the least to the largest.

    Args:
        rows: numbers, all rows of one length.
        row: what a row is.
        column: what a column is.
        title: what the numbers are.
    """
    numbers = [value for values in rows for value in values if isfinite(value) and value > 0]
    low, high = (log10(min(numbers)), log10(max(numbers))) if numbers else (0.0, 0.0)
    columns = max(len(values) for values in rows)
    cell = max(7.0, min(28.0, 190 / len(rows)))
    wide, height = WIDTH - LEFT - RIGHT, cell * len(rows)
    cells = [
        tag(
            "rect",
            tag("title", f"{row} {i}, {column} {j}: {value:.3g}"),
            x=LEFT + wide * j / columns,
            y=TOP + cell * i,
            width=wide / columns + 0.4,
            height=cell + 0.4,
            fill=_colour((log10(value) - low) / (high - low) if value > 0 and high > low else 0.0),
        )
        for i, values in enumerate(rows)
        for j, value in enumerate(values)
    ]
    labels = [
        tag("text", str(i), x=LEFT - 8, y=TOP + cell * (i + 0.5), dy="0.32em", text_anchor="end")
        for i in range(0, len(rows), ceil(LABEL_ROOM / cell))
    ]
    labels += [
        tag(
            "text",
            str(j),
            x=LEFT + wide * (j + 0.5) / columns,
            y=TOP + height,
            dy="1.4em",
            text_anchor="middle",
        )
        for j in range(0, columns, max(1, ceil(columns / 8)))
    ]
    labels.append(
        tag("text", column, x=LEFT + wide / 2, y=TOP + height + 36, text_anchor="middle", class_="axis")
    )
    svg = tag(
        "svg", cells, labels, viewBox=f"0 0 {WIDTH} {TOP + height + BOTTOM:.0f}", role="img", aria_label=title
    )
    scale = tag("p", f"{10**low:.3g} ", _scale(), f" {10**high:.3g}", class_="scale")
    return tag("figure", tag("figcaption", title), svg, scale, class_="plot")


def _line(series: Series, points: list[tuple[float, float]]) -> list[Html]:
    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return [
        tag("polyline", points=path, class_=f"line {series.style}"),
        *(
            tag(
                "circle",
                tag("title", f"{series.name}, {step}: {value:.4g}"),
                cx=x,
                cy=y,
                r=2.6,
                class_=series.style,
            )
            for step, ((x, y), value) in enumerate(zip(points, series.values, strict=True))
        ),
    ]


def _ticks(largest: float) -> list[float]:
    """Round numbers from 0 to the first that is not below `largest`."""
    if largest <= 0:
        return [0.0, 1.0]
    rough = largest / TICKS
    magnitude = 10 ** floor(log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough)
    return [step * number for number in range(ceil(largest / step - 1e-9) + 1)]


def _colour(level: float) -> str:
    """A colour of the heat maps, level in [0, 1]."""
    place = level * (len(COLOURS) - 1)
    index = min(int(place), len(COLOURS) - 2)
    between = zip(COLOURS[index], COLOURS[index + 1], strict=True)
    red, green, blue = (round(a + (b - a) * (place - index)) for a, b in between)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _scale() -> Html:
    """The colours from least to most."""
    cells = [tag("rect", x=8 * i, y=0, width=8.4, height=12, fill=_colour(i / 15)) for i in range(16)]
    return tag("svg", cells, viewBox="0 0 128 12", width=128, height=12, aria_hidden="true")
