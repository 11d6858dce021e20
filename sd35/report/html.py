"""Markup that escapes: text becomes HTML through `tag` alone, and what is not `Html` is text."""

from collections.abc import Iterable
from html import escape

VOID = frozenset({"img", "meta", "br"})


class Html(str):
    """Markup. Whatever else is put together from it with `+` or `format` is text again, and escaped."""

    __slots__ = ()


Child = str | Iterable["Child"] | None
Attribute = str | float | None


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element.

    Args:
        name: of the element.
        children: markup, texts, which are escaped, or any nesting of lists of these; None is nothing.
        attributes: with `_` for `-`, and `class_` for class; None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def section(title: str, text: str, *content: Html | Iterable[Html] | None) -> Html:
    """A section with its heading and what it shows, in a sentence or two."""
    return tag("section", tag("h2", title), tag("p", text, class_="about"), *content)


def join(children: Iterable[Child]) -> Html:
    """Children one after the other."""
    return Html("".join(_markup(child) for child in children))


def _markup(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return escape(child, quote=True)
    return join(child)


def _number(value: str | float) -> str:
    """Floats with the two decimals that a drawing needs."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
