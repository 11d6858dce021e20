"""A sheet that shows where in a picture each word of its prompt is read."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from textenc.prompt import EncoderName

from .maps import AttentionMaps
from .picture import heat_picture, overlay
from .words import WordError, words_of

TILE, GAP, MARGIN = 176, 10, 28
LABEL = 108  # width of the column of row labels
INK, FAINT, PAPER = (28, 28, 32), (120, 120, 128), (255, 255, 255)
FONT, SMALL = 16, 13


class Row(NamedTuple):
    """One row of the sheet: which blocks, and whether over the picture."""

    title: str
    detail: str
    blocks: list[int]
    over_picture: bool


def attention_sheet(
    maps: AttentionMaps,
    picture: Image.Image,
    *,
    words: Sequence[str] | None = None,
    part: str = "image-text",
    encoder: EncoderName | None = None,
) -> Image.Image:
    """Draw the heat map of each word: over the picture, alone, and in early, middle and late blocks.

    Each map is scaled to its own hottest patch; the number below a word is that patch's value.

    Args:
        maps: what was recorded while the picture, the first of its generation, was drawn.
        picture: what was drawn.
        words: of the prompt; None takes all that were read, but articles.
        part: as in `AttentionMaps.heatmap`.
        encoder: as in `AttentionMaps.heatmap`.

    Raises:
        WordError: a word is not in the prompt, or was not read; or the prompt has no words.
    """
    words = words_of(maps.encoding()) if words is None else list(words)
    if not words:
        raise WordError(f"there is no word to show in the prompt {maps.encoding().prompts[0].text!r}")
    rows = _rows(maps.blocks)
    heats = [  # all of them before drawing, so that a wrong word is told first
        [maps.heatmap(w, part=part, encoder=encoder, block=row.blocks) for w in words] for row in rows
    ]
    prompt = maps.encoding().prompts[0].text
    width = 2 * MARGIN + LABEL + (1 + len(words)) * (TILE + GAP)
    lines = _wrapped(prompt, width - 2 * MARGIN)
    top = MARGIN + 24 * len(lines) + 44
    sheet = Image.new("RGB", (width, top + 26 + len(rows) * (TILE + GAP) + 24 + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 24 * number), line, INK, _font(19))
    reads = (
        "how much each patch reads a word" if part == "image-text" else "where each word reads the picture"
    )
    draw.text((MARGIN, top - 38), f"{reads}; mean over heads and steps", FAINT, _font(SMALL))
    _draw_picture(sheet, draw, picture, top)
    for column, word in enumerate(words):
        left = MARGIN + LABEL + (1 + column) * (TILE + GAP)
        _centred(draw, word, left, top, FONT, INK)
        for line, (row, heat) in enumerate(zip(rows, heats, strict=True)):
            sheet.paste(_tile(heat[column], picture, row), (left, top + 26 + line * (TILE + GAP)))
        bottom = top + 26 + len(rows) * (TILE + GAP)
        _centred(draw, f"at most {float(heats[0][column].max()):.2g}", left, bottom, SMALL, FAINT)
    for line, row in enumerate(rows):
        y = top + 26 + line * (TILE + GAP) + TILE // 2 - 18
        draw.text((MARGIN, y), row.title, INK, _font(FONT))
        draw.text((MARGIN, y + 21), row.detail, FAINT, _font(SMALL))
    return sheet


def _rows(blocks: list[int]) -> list[Row]:
    """All blocks twice, and then a third of them each, where there are as many."""
    rows = [Row("overlay", _range(blocks), blocks, True), Row("heat", _range(blocks), blocks, False)]
    if len(blocks) >= 3:
        cuts = [round(len(blocks) * part / 3) for part in range(4)]
        for number, name in enumerate(("early", "middle", "late")):
            own = blocks[cuts[number] : cuts[number + 1]]
            rows.append(Row(name, _range(own), own, False))
    return rows


def _range(blocks: list[int]) -> str:
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    dense = blocks == list(range(blocks[0], blocks[-1] + 1))
    return f"blocks {blocks[0]} to {blocks[-1]}" if dense else f"{len(blocks)} blocks"


def _tile(heat: Tensor, picture: Image.Image, row: Row) -> Image.Image:
    if row.over_picture:
        return overlay(_fitted(picture), heat)
    tile = Image.new("RGB", (TILE, TILE), PAPER)
    shown = heat_picture(heat, _fitted(picture).size)
    tile.paste(shown, ((TILE - shown.width) // 2, (TILE - shown.height) // 2))
    return tile


def _fitted(picture: Image.Image) -> Image.Image:
    """The picture in the size of a tile, its proportions kept."""
    scale = TILE / max(picture.size)
    return picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
    )


def _draw_picture(sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Image.Image, top: int) -> None:
    left = MARGIN + LABEL
    _centred(draw, "picture", left, top, FONT, FAINT)
    sheet.paste(_fitted(picture), (left, top + 26))


def _centred(
    draw: ImageDraw.ImageDraw, text: str, left: int, top: int, size: int, colour: tuple[int, int, int]
) -> None:
    """Write a line over the middle of a tile, shortened to its width."""
    font = _font(size)
    while len(text) > 1 and draw.textlength(text, font) > TILE:
        text = text[:-2] + "…"
    draw.text((left + (TILE - draw.textlength(text, font)) / 2, top), text, colour, font)


def _wrapped(text: str, width: int) -> list[str]:
    """A text in lines that fit, two at most."""
    lines, font = [""], _font(19)
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= 2 else [lines[0], lines[1] + " …"]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
