"""The sections of the page that show pictures and numbers, each a function of what was recorded."""

from collections.abc import Sequence

import torch
from PIL import Image

import flow

from ..attention import WordError, overlay, words_of
from ..settings import Settings
from .html import Html, section, tag
from .pictures import image
from .plot import Series, heat_grid, line_plot
from .preview import fit_preview
from .records import Records, Stream

HEAT_SIDE = 256  # pixels along the longer side of a word's heat map


def header(settings: Settings, picture: Image.Image, notes: Sequence[str]) -> Html:
    """The picture, and what it was drawn from."""
    prompt = settings.prompts[0].text
    facts = {
        "model": settings.model,
        "size": f"{settings.width} × {settings.height}",
        "seed": "noise was given" if settings.seed is None else str(settings.seed),
        "steps": f"{settings.steps}, {settings.solver}",
        "guidance scale": f"{settings.guidance_scale:g}",
        "computed in": " on ".join(settings.made_with.get(key, "?") for key in ("dtype", "device")),
    }
    if settings.negative.text:
        facts = {"away from": settings.negative.text} | facts
    return tag(
        "header",
        image(picture, f"The picture: {prompt}", lossless=True, class_="picture"),
        tag(
            "div",
            tag("h1", prompt or "(the empty prompt)"),
            tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in facts.items()], class_="facts"),
            tag("ul", [tag("li", note) for note in notes], class_="notes") if notes else None,
        ),
    )


def schedule(settings: Settings, recording: Records) -> Html:
    """The noise levels, beside evenly spaced ones."""
    even = flow.sigmas(settings.steps, 1.0, "linear")
    return section(
        "Noise levels",
        "Sigma is the share of noise in the state: 1 is noise, 0 is the picture. The shift of "
        f"{settings.schedule_shift:g} spends more steps on noisy levels, where the layout is decided.",
        line_plot(
            [
                Series(f"sigma, {settings.schedule_name}", recording.sigmas.tolist(), "c0"),
                Series("evenly spaced", even.tolist(), "c3 dashed"),
            ],
            x="step",
            y="sigma at the start of each step",
        ),
    )


def denoised(recording: Records, index: int) -> Html:
    """The data that each step heads for: decoded, and through a linear map."""
    steps = recording.steps
    latents = [step.denoised[index] for step in steps]
    preview = fit_preview(torch.stack(latents), [step.previews[index] for step in steps])
    frames = [
        tag(
            "figure",
            image(step.previews[index], f"step {step.number}, decoded"),
            image(preview(latents[i]), f"step {step.number}, linear", lossless=True, class_="linear"),
            tag("figcaption", f"{step.number}", tag("span", f"σ {step.sigma:.3f}")),
        )
        for i, step in enumerate(steps)
    ]
    return section(
        "The clean picture that each step heads for",
        "Where a straight line along the velocity meets sigma 0. Above, decoded by the autoencoder; below, "
        "a linear map of the 16 latent channels to colours, fitted to these frames by least squares. It "
        f"explains {100 * max(0.0, preview.explained):.0f} % of their variance.",
        tag("div", frames, class_="frames"),
    )


def velocities(recording: Records, index: int) -> Html:
    """The sizes of the velocities at each step."""
    names = {
        "guided": ("guided, as followed", "c0"),
        "cond": ("with the prompt", "c1"),
        "uncond": ("with the negative prompt", "c2"),
        "guidance": ("difference of the two", "c3"),
    }
    series = [
        Series(label, [step.velocities[name][index] for step in recording.steps], style)
        for name, (label, style) in names.items()
        if all(name in step.velocities for step in recording.steps)
    ]
    return section(
        "Velocity and guidance",
        "Root mean squares over a latent's values, so that pictures of different sizes compare. The "
        "difference of the two branches is what guidance multiplies.",
        line_plot(series, x="step", y="root mean square of the velocity"),
    )


def blocks(recording: Records, index: int) -> Html:
    """How large the tokens of both streams are after each block."""
    titles: dict[Stream, str] = {"x": "Image tokens", "context": "Text tokens"}
    grids = [
        heat_grid(grid, row="block", column="step", title=f"{title}, root mean square after each block")
        for stream, title in titles.items()
        if (grid := _grid(recording, stream, index))
    ]
    numbers = sorted({block for block, _, _, sample in recording.blocks if sample == index})
    rows = [
        tag("tr", tag("th", str(block), scope="row"), _cells(recording, block, index)) for block in numbers
    ]
    names = ("block", "image, rms", "image, largest", "text, rms", "text, largest")
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in names]))
    return section(
        "Inside the transformer",
        "The tokens that each joint block passes on, evaluated with the prompt. After the last block the "
        "text tokens are dropped. The table has the mean over steps, and the largest value of any.",
        tag("div", grids, class_="pair"),
        tag("div", tag("table", head, tag("tbody", rows), class_="numbers"), class_="scroll"),
    )


def words(recording: Records, picture: Image.Image, index: int) -> Html | None:
    """The heat map of each word; None where attention was not recorded, or there is no word."""
    maps = recording.attention
    if maps is None or index not in maps.encodings:
        return None
    picture = picture.copy()
    scale = HEAT_SIDE / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    figures = []
    for word in words_of(maps.encoding(index)):
        try:
            heat = maps.heatmap(word, sample=index)
        except WordError:  # pieces that span words: nothing of its own to show
            continue
        share = tag("span", f"{100 * float(heat.mean()):.2g} %")
        figures.append(
            tag(
                "figure",
                image(overlay(picture, heat), f"where the picture reads {word!r}"),
                tag("figcaption", word, share),
            )
        )
    if not figures:
        return None
    return section(
        "Words",
        "Where the image tokens read each word: the mean of their attention over blocks, heads and steps. "
        "Each map is scaled to its own hottest patch; the number is the word's share of the attention, "
        "averaged over the picture.",
        tag("div", figures, class_="words"),
    )


def _grid(recording: Records, stream: Stream, index: int) -> list[list[float]]:
    """Root mean squares of one stream, blocks down and steps across."""
    keys = [
        (block, step) for block, own, step, sample in recording.blocks if (own, sample) == (stream, index)
    ]
    steps = sorted({step for _, step in keys})
    return [
        [recording.blocks[block, stream, step, index].rms for step in steps]
        for block in sorted({block for block, _ in keys})
    ]


def _cells(recording: Records, block: int, index: int) -> list[Html]:
    streams: tuple[Stream, ...] = ("x", "context")
    cells = []
    for stream in streams:
        found = [
            statistics
            for (number, own, _, sample), statistics in recording.blocks.items()
            if (number, own, sample) == (block, stream, index)
        ]
        if not found:
            cells += [tag("td", "–"), tag("td", "–")]
            continue
        mean = sum(one.rms for one in found) / len(found)
        cells += [tag("td", _short(value)) for value in (mean, max(one.largest for one in found))]
    return cells


def _short(value: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
