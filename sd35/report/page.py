"""The page as a whole."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..settings import Settings
from . import sections, tables
from .html import Html, tag
from .records import Records

STYLE = Path(__file__).with_name("page.css")

NOTHING_FROM_OUTSIDE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the page may load: its own pictures and style. No script runs in it, whatever a prompt holds."""


def as_page(recording: Records) -> str:
    """Show a recorded generation: one HTML file that needs no other and no network.

    Each picture has a part of its own on the page.
    """
    result = recording.result
    settings = result.settings
    parts = [
        tag("article", _article(recording, picture, settings.of(index), index, result.notes))
        for index, picture in enumerate(result.images)
    ]
    title = settings.prompts[0].text or "a picture"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=NOTHING_FROM_OUTSIDE),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} – sd35"),
        tag("style", Html(STYLE.read_text(encoding="utf-8"))),
    )
    version = settings.made_with.get("sd35", "")
    footer = tag("footer", f"Written by sd35 {version}. Everything on this page is in this one file.")
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', parts, footer)), lang='en')}\n"


def _article(
    recording: Records, picture: Image.Image, settings: Settings, index: int, notes: Sequence[str]
) -> list[Html | None]:
    """Everything about one picture."""
    return [
        sections.header(settings, picture, notes),
        sections.denoised(recording, index),
        sections.words(recording, picture, index),
        sections.schedule(settings, recording),
        sections.velocities(recording, index),
        sections.blocks(recording, index),
        tables.tokens(recording.encodings[index]),
        tables.settings_table(settings),
    ]
