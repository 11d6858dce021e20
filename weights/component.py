"""One part of a model inside the files that hold it, under our own key names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from .file import DTYPES, MappedFile, TensorInfo
from .folder import Nowhere, read_json
from .keys import Recipe, to_ours
from .parts import DIFFUSERS, PREFIXES, ignored, split_prefixes, which_clip
from .recognise import foreign_model, recognise
from .unit import Unit


@dataclass(frozen=True)
class Component:
    """A part of a model: what it is made of, read from headers alone."""

    part: str  # a key of PARTS
    unit: Unit
    recipes: Mapping[str, Recipe]  # our key to how it is made from those of the unit
    left_over: tuple[str, ...] = ()  # keys of the unit that belong to this part and have no place in it
    layout: str = "official"  # or "diffusers"
    prefix: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json beside the file
    decided: str = ""  # what told which part it is, where its keys alone do not

    @property
    def where(self) -> str:
        """Where the part lies, for messages: the folder or repository, and the file inside it."""
        whole, name = self.unit.folder.name, self.unit.name
        return whole if whole.endswith(name) else f"{whole}/{name}"

    @property
    def sources(self) -> dict[str, TensorInfo]:
        """The tensors of the unit that this part is made of."""
        return {name: self.unit.infos[name] for recipe in self.recipes.values() for name in recipe.sources}

    @property
    def files(self) -> list[str]:
        """The files that hold them, sorted."""
        return sorted({self.unit.files[name] for name in self.sources})

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to compute in: that of most of the bytes; bfloat16 for fp8, which is for storing only."""
        bytes_of: Counter[str] = Counter()
        for info in self.sources.values():
            if DTYPES[info.dtype].is_floating_point:
                bytes_of[info.dtype] += info.nbytes
        dtype = DTYPES[bytes_of.most_common(1)[0][0]] if bytes_of else torch.float32
        return torch.bfloat16 if dtype.itemsize == 1 else dtype

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our key to shape."""
        shapes = {name: info.shape for name, info in self.unit.infos.items()}
        return {name: recipe.shape(shapes) for name, recipe in self.recipes.items()}

    def tensors(self, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """Our key to tensor, mapped from the files, which are downloaded first where they are remote.

        Args:
            names: only these; None means all.
        """
        chosen = self.recipes if names is None else {name: self.recipes[name] for name in names}
        needed = {self.unit.files[source] for recipe in chosen.values() for source in recipe.sources}
        opened = {file: MappedFile(self.unit.folder.path(file)) for file in sorted(needed)}
        return {
            name: recipe.tensor(lambda source: opened[self.unit.files[source]][self.unit.stored[source]])
            for name, recipe in chosen.items()
        }


def components_of(unit: Unit) -> tuple[list[Component], list[str]]:
    """Find the parts that a unit holds.

    Returns:
        The parts, and the keys of a unit that holds none: of another model, or of an adapter.
    """
    if foreign_model(unit.infos) is not None:
        return [], list(unit.infos)
    groups = split_prefixes(unit.infos)
    bare = groups.pop("", [])
    found = [
        _component(unit, PREFIXES[prefix], prefix, names)
        for prefix, names in groups.items()
        if _belongs(PREFIXES[prefix], recognise(name.removeprefix(prefix) for name in names))
    ]
    if found:
        # Keys outside the official prefixes belong to no part: nothing of such a file is loaded in silence.
        return [replace(one, left_over=(*one.left_over, *bare)) for one in found], []
    part = recognise(bare)
    if part is None:
        return [], list(unit.infos)
    if part == "clip":
        shapes = {name: unit.infos[name].shape for name in bare}
        part, decided = which_clip(unit.path_hint, _config(unit), shapes)
        return [replace(_component(unit, part, "", bare), decided=decided)], []
    return [_component(unit, part, "", bare)], []


def _belongs(part: str, recognised: str | None) -> bool:
    """Whether keys that were recognised are those of the part that their prefix announces."""
    return recognised is not None and part.startswith(recognised)


def component_in(unit: Unit, part: str) -> Component:
    """Read a unit as holding a certain part, named by its prefix or by none.

    Args:
        unit: what holds it.
        part: the part; "clip" for one of the two.
    """
    groups = split_prefixes(unit.infos)
    bare = groups.pop("", [])
    for prefix, names in groups.items():
        if PREFIXES[prefix].startswith(part):
            return _component(unit, PREFIXES[prefix], prefix, names)
    if part == "clip":
        part, _ = which_clip("", {}, {name: unit.infos[name].shape for name in bare})
    return _component(unit, part, "", bare)


def described(
    part: str, tensors: Mapping[str, Tensor] | Mapping[str, Sequence[int]]
) -> tuple[Component, torch.device]:
    """Describe tensors in memory, or only their shapes, as `component_in` describes those of a file.

    Returns:
        The component, and the device to build its module on: the tensors' own; meta for shapes, for
        meta tensors, and under `torch.device("meta")`.
    """
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    infos, devices = {}, [torch.get_default_device()]
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            infos[name] = TensorInfo(tuple(tensor.shape), spelled[tensor.dtype])
            devices.append(tensor.device)
        else:
            infos[name] = TensorInfo(tuple(tensor), "F32")
            devices.append(torch.device("meta"))
    unit = Unit.of("these tensors", Nowhere(), infos, dict.fromkeys(infos, ""))
    meta = torch.device("meta")
    return component_in(unit, part), meta if meta in devices else devices[-1]


def _component(unit: Unit, part: str, prefix: str, names: list[str]) -> Component:
    """Bring one part's keys into our naming."""
    raw = {name.removeprefix(prefix): name for name in names if not ignored(part, name.removeprefix(prefix))}
    layout, left_over = "official", []
    recipes = {name: Recipe((name,)) for name in raw}
    if part in DIFFUSERS:
        sign, table = DIFFUSERS[part]
        if any(sign.match(name) for name in raw):
            layout = "diffusers"
            recipes, left_over = to_ours(raw, table)
    if part == "t5":
        recipes = _tie_embedding(recipes)
    recipes = {
        name: Recipe(tuple(raw[source] for source in recipe.sources), recipe.change)
        for name, recipe in recipes.items()
    }
    return Component(
        part,
        unit,
        recipes,
        tuple(raw[name] for name in left_over),
        layout,
        prefix,
        {} if prefix else _config(unit),
    )


def _tie_embedding(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    """T5's token table goes by two names, of which a file has one or both: keep it as `shared.weight`."""
    alias = recipes.pop("encoder.embed_tokens.weight", None)
    return recipes if alias is None or "shared.weight" in recipes else {"shared.weight": alias, **recipes}


def _config(unit: Unit) -> dict[str, Any]:
    """config.json beside a unit; empty where there is none."""
    file = (PurePosixPath(unit.name).parent / "config.json").as_posix()
    return read_json(unit.folder, file) if file in unit.folder.files() else {}
