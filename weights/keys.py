"""Carry key names between layouts by tables of templates, readable in both directions.

Ours are the official keys without the component's prefix; `layouts.py` holds the tables. A line of
one pairs two templates:

    {i}, {j}    a layer number, the same on both sides
    {last}      the number of the last layer of the stack, tried before {i}
    {~i}        on their side: the layer {i}, counted from the other end of the stack
    *           weight or bias
    q|k|v       three tensors on their side, concatenated along axis 0 on ours
    0|1|2       the same three, numbered

and may name what is done to the values:

    swap        the two halves along axis 0 change places
    conv        a 1x1 convolution (C, C, 1, 1) of ours is a linear layer (C, C) of theirs
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .errors import FitError


@dataclass(frozen=True)
class Line:
    """One line of a table: our template, theirs, and what is done to the values."""

    ours: str
    theirs: str
    change: str = ""  # "", "swap" or "conv"


@dataclass(frozen=True)
class Layout:
    """The table of one component, and the stack whose layers `{last}` and `{~i}` count."""

    lines: tuple[Line, ...]
    our_stack: str  # what stands before the layer number, for instance "joint_blocks."
    their_stack: str


@dataclass(frozen=True)
class Recipe:
    """How one of our tensors is made from those of a file."""

    sources: tuple[str, ...]
    change: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether the tensor is one of the file's as it lies."""
        return len(self.sources) == 1 and not self.change

    def shape(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """The shape that `tensor` will have, given those of the file's tensors.

        Raises:
            FitError: q, k and v cannot be joined.
        """
        shape = tuple(shapes[self.sources[0]])
        if len(self.sources) > 1:
            parts = [tuple(shapes[name]) for name in self.sources]
            if not all(parts) or len({part[1:] for part in parts}) > 1:
                listed = ", ".join(f"{name} {list(shapes[name])}" for name in self.sources)
                raise FitError(f"these tensors should have one shape and have several: {listed}")
            return (sum(shapes[name][0] for name in self.sources), *shape[1:])
        return (*shape, 1, 1) if self.change == "conv" and len(shape) == 2 else shape

    def tensor(self, read: Callable[[str], Tensor]) -> Tensor:
        """Make the tensor; what `read` gives, or a view of it, wherever nothing has to move."""
        tensors = [read(name) for name in self.sources]
        if len(tensors) > 1:
            return torch.cat(tensors)
        tensor = tensors[0]
        if self.change == "swap":
            return torch.cat(tensor.chunk(2)[::-1])
        if self.change == "conv" and tensor.ndim == 2:
            return tensor[:, :, None, None]
        return tensor


def to_ours(names: Iterable[str], layout: Layout) -> tuple[dict[str, Recipe], list[str]]:
    """Read the names of another layout through its table.

    Returns:
        Our name to how it is made, and the names that the table does not know. Where one of q, k
        and v is absent, the others count as unknown.
    """
    names = list(names)
    last = _last_layer(names, layout.their_stack)
    parts: dict[tuple[str, str], dict[str, str]] = {}
    unknown = []
    for name in names:
        match = _match(name, {line.theirs: line for line in layout.lines}, last)
        if match is None:
            unknown.append(name)
            continue
        line, fields = match
        part = _third(fields)
        parts.setdefault((_fill(line.ours, fields), line.change), {})[part] = name
    recipes: dict[str, Recipe] = {}
    for (ours, change), sources in parts.items():
        if "" not in sources and len(sources) < 3:
            unknown += sources.values()
        else:
            recipes[ours] = Recipe(tuple(sources[part] for part in ("", *"qkv") if part in sources), change)
    return recipes, unknown


def to_theirs(names: Iterable[str], layout: Layout) -> tuple[dict[str, Recipe], list[str]]:
    """Say how our names are stored in the other layout.

    Returns:
        Our name to its recipe, exactly as `to_ours` gives it, and the names that the table does not know.
    """
    names = list(names)
    last = _last_layer(names, layout.our_stack)
    recipes, unknown = {}, []
    for name in names:
        match = _match(name, {line.ours: line for line in layout.lines}, last)
        if match is None:
            unknown.append(name)
            continue
        line, fields = match
        parts = "qkv" if _QKV in line.theirs or _NUMBERED in line.theirs else ("",)
        recipes[name] = Recipe(
            tuple(
                _fill(line.theirs, {**fields, _QKV: part, _NUMBERED: str("qkv".find(part))}) for part in parts
            ),
            line.change,
        )
    return recipes, unknown


@dataclass(frozen=True)
class Place:
    """Where one name of another layout belongs among ours."""

    ours: str
    third: str = ""  # "q", "k" or "v" where it is a third of ours along axis 0
    change: str = ""


def place_of(name: str, layout: Layout, *, last: int) -> Place | None:
    """Find the place of one name alone, as where a file holds q without k and v.

    Args:
        name: in the other layout.
        layout: its table.
        last: the number of the stack's last layer, which the names of such a file need not tell.

    Returns:
        Its place, or None where the table does not know it.
    """
    match = _match(name, {line.theirs: line for line in layout.lines}, last)
    if match is None:
        return None
    line, fields = match
    return Place(_fill(line.ours, fields), _third(fields), line.change)


_QKV = "q|k|v"
_NUMBERED = "0|1|2"
_FIELDS = {
    "{i}": r"(?P<i>\d+)",
    "{~i}": r"(?P<from_end>\d+)",
    "{j}": r"(?P<j>\d+)",
    "{last}": r"(?P<last>\d+)",
    "*": r"(?P<leaf>weight|bias)",
    _QKV: r"(?P<part>q|k|v)",
    _NUMBERED: r"(?P<number>[012])",
}
_FIELD = re.compile("|".join(re.escape(field) for field in _FIELDS))


def _match(name: str, templates: Mapping[str, Line], last: int) -> tuple[Line, dict[str, str]] | None:
    """Find the first line that a name fits, and what its fields stand for in that name."""
    for template, line in templates.items():
        match = _pattern(template).fullmatch(name)
        if match is None:
            continue
        groups = match.groupdict()
        if groups.get("last", str(last)) != str(last):
            continue
        i = groups["i"] if "i" in groups else last - int(groups.get("from_end", 0))
        fields = {"{i}": str(i), "{~i}": str(last - int(i)), "{last}": str(last)}
        rest = {"{j}": "j", "*": "leaf", _QKV: "part", _NUMBERED: "number"}
        return line, fields | {field: groups[key] for field, key in rest.items() if key in groups}
    return None


def _third(fields: Mapping[str, str]) -> str:
    """Which third of ours a name stands for: "q", "k", "v", or "" for the whole."""
    return fields[_QKV] if _QKV in fields else "qkv"[int(fields[_NUMBERED])] if _NUMBERED in fields else ""


def _fill(template: str, fields: Mapping[str, str]) -> str:
    """Put values into a template's fields."""
    return _FIELD.sub(lambda field: fields[field[0]], template)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression with a named group for every field."""
    literal = _FIELD.split(template)
    fields = [_FIELDS[field] for field in _FIELD.findall(template)]
    return re.compile(
        "".join(re.escape(text) + field for text, field in zip(literal, [*fields, ""], strict=True))
    )


def _last_layer(names: Iterable[str], stack: str) -> int:
    """The highest layer number under `stack`; -1 where there is none."""
    pattern = re.compile(re.escape(stack) + r"(\d+)\.")
    return max((int(match[1]) for name in names if (match := pattern.match(name))), default=-1)
