"""Markup, plots and the linear preview."""

import pytest
import torch
from PIL import Image

from sd35.report.html import Html, join, tag
from sd35.report.plot import Series, heat_grid, line_plot
from sd35.report.preview import fit_preview


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = tag("b", "1 < 2")
    assert tag("p", "a & b ", inner, title='"x"') == '<p title="&quot;x&quot;">a &amp; b <b>1 &lt; 2</b></p>'
    assert join(["<i>", [inner, None]]) == "&lt;i&gt;<b>1 &lt; 2</b>"
    assert tag("p", inner + "<") == "<p>&lt;b&gt;1 &amp;lt; 2&lt;/b&gt;&lt;</p>"  # a sum is text again
    assert isinstance(inner, Html)


def test_attributes() -> None:
    assert tag("img", src="a", class_="c", alt=None, data_x=1.5) == '<img src="a" class="c" data-x="1.5">'
    assert tag("rect", x=10.0, y=1 / 3) == '<rect x="10" y="0.33"></rect>'


def test_lines_reach_their_values(outline) -> None:
    seen = outline(line_plot([Series("<a>", [0.0, 2.0, 1.0], "c0")], x="step", y="value"))
    points = [tuple(map(float, point.split(","))) for point in seen.of("polyline")[0]["points"].split()]
    bottom, top = points[0][1], points[1][1]
    assert points[2][1] == pytest.approx((bottom + top) / 2, abs=0.02)
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.02)
    assert "<a>, 1: 2" in seen.text


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [1e-9, 3e-9], [1e7]])
def test_any_size_can_be_drawn(values, outline) -> None:
    assert "nan" not in line_plot([Series("a", values, "c0")], x="step", y="value")
    assert len(outline(heat_grid([values], row="block", column="step", title="t")).of("title")) == len(values)


def test_heat_is_brightest_where_it_is_most(outline) -> None:
    seen = outline(heat_grid([[1.0, 10.0], [0.1, 1.0]], row="block", column="step", title="t"))
    fills = [one["fill"] for one in seen.of("rect")][:4]
    assert fills[1] == "#fcffa4"
    assert fills[2] == "#000004"
    assert fills[0] == fills[3]


def test_the_preview_finds_a_linear_decoder() -> None:
    """Where colours are a linear function of the latents, it is found, and pictures come back."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(6, 16, 8, 8, generator=generator)
    weight = 0.04 * torch.randn(3, 16, generator=generator)
    colours = (torch.einsum("kc,schw->shwk", weight, latents) + 0.5).clamp(0, 1)
    pictures = [Image.fromarray((255 * one).round().byte().numpy()) for one in colours]
    preview = fit_preview(latents, pictures)
    assert preview.explained > 0.999
    found = torch.frombuffer(bytearray(preview(latents[2]).tobytes()), dtype=torch.uint8).int()
    wanted = torch.frombuffer(bytearray(pictures[2].tobytes()), dtype=torch.uint8).int()
    assert (found - wanted).abs().max() <= 2


def test_the_preview_of_few_pixels_is_finite() -> None:
    latents = torch.zeros(1, 16, 2, 2)
    preview = fit_preview(latents, [Image.new("RGB", (16, 16), (10, 20, 30))])
    assert preview(latents[0]).getpixel((0, 0)) == (10, 20, 30)
