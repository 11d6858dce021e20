"""The sections of the page that list what was read and asked for."""

import json
from itertools import groupby

from textenc import ContextToken, Encoding

from ..settings import Settings
from .html import Html, section, tag

ENCODERS = {"clip_l": "CLIP-L", "clip_g": "CLIP-G", "t5": "T5"}


def tokens(encoding: Encoding) -> Html:
    """What each encoder read."""
    read = encoding.tokens[0]
    tables = [
        _token_table(title, [one for one in read if one.encoder == name]) for name, title in ENCODERS.items()
    ]
    return section(
        "Tokens",
        "The prompt as each text encoder reads it. Positions of CLIP-L and CLIP-G are the same context "
        "tokens, side by side in their channels. Padding is attended to like text.",
        tag("div", tables, class_="tables"),
    )


def settings_table(settings: Settings) -> Html:
    """Everything that decides the picture."""
    described = json.loads(settings.to_json())
    rows = [
        tag("tr", tag("th", name.replace("_", " "), scope="row"), tag("td", _plain(value)))
        for name, value in described.items()
        if name not in ("format", "version")
    ]
    return section(
        "Settings",
        "The picture carries them: sd35 generate --from-image PICTURE draws it again.",
        tag("div", tag("table", tag("tbody", rows), class_="settings"), class_="scroll"),
        tag("details", tag("summary", "As JSON"), tag("pre", settings.to_json())),
    )


def _token_table(title: str, read: list[ContextToken]) -> Html:
    if not read:
        return tag("div", tag("h3", title), tag("p", "not loaded", class_="about"))
    rows = []
    for kind, group in groupby(read, key=lambda token: token.kind):
        same = list(group)
        shown = same if kind != "pad" else same[:1]
        for token in shown:
            number = f"{token.position}"
            if len(shown) < len(same):
                number = f"{same[0].position}–{same[-1].position}"
            cells = (
                tag("td", number),
                tag("td", tag("code", token.piece)),
                tag("td", str(token.id)),
                tag("td", kind),
            )
            rows.append(tag("tr", cells, class_=kind))
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in ("at", "piece", "id", "kind")]))
    count = sum(token.kind == "text" for token in read)
    return tag(
        "div",
        tag("h3", title, tag("span", f"{count} of {len(read)} from the text")),
        tag("div", tag("table", head, tag("tbody", rows)), class_="scroll"),
    )


def _plain(value: object) -> str:
    """A setting as a person writes it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(_plain(one) for one in value)
    return "–" if value is None or value == "" else str(value)
