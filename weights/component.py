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
from .packed.blocks import BLOCKS
from .packed.gguf import MappedGGUF
from .packed.scales import Coded, read_coded, stored_as, take_scales
from .packed.value import STORED, Packed
from .parts import OTHER_LAYOUTS, PREFIXES, ignored, kind_of, split_prefixes, which_clip
from .recognise import foreign_model, recognise
from .unit import Unit


@dataclass(frozen=True)
class Component:
    """A part of a model: what it is made of, read from headers alone."""

    part: str  # a key of PARTS
    unit: Unit
    recipes: Mapping[str, Recipe]  # our key to how it is made from those of the unit
    left_over: tuple[str, ...] = ()  # keys of the unit that belong to this part and have no place in it
    layout: str = "official"  # or "diffusers", or "llama.cpp"
    prefix: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json beside the file
    decided: str = ""  # what told which part it is, where its keys alone do not
    coded: Mapping[str, Coded] = field(default_factory=dict)  # weight of the unit to its scale and format

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
    def in_few_bits(self) -> bool:
        """Whether weights are stored in 8 bits or fewer."""
        return bool(self.coded) or any(
            info.dtype in BLOCKS or info.dtype in STORED for info in self.sources.values()
        )

    @property
    def files(self) -> list[str]:
        """The files that hold them, sorted."""
        return sorted({self.unit.files[name] for name in self.sources})

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to compute in: that of most of the bytes; bfloat16 where those are in few bits."""
        bytes_of: Counter[str] = Counter()
        for info in self.sources.values():
            if info.dtype in BLOCKS or DTYPES[info.dtype].is_floating_point:
                bytes_of[info.dtype] += info.nbytes
        if not bytes_of:
            return torch.float32
        most = bytes_of.most_common(1)[0][0]
        return torch.bfloat16 if most in BLOCKS or most in STORED else DTYPES[most]

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
        opened = self._opened([source for recipe in chosen.values() for source in recipe.sources])

        def read(source: str) -> Tensor:
            if source in self.coded:
                return self._coded(source, opened).unpack()
            return opened[self.unit.files[source]][self.unit.stored[source]]

        return {name: recipe.tensor(read) for name, recipe in chosen.items()}

    def packed(self, names: tuple[str, ...]) -> dict[str, Packed]:
        """Our key to the tensor in few bits, of those that are stored so and need not be put together."""
        sources = {name: self.recipes[name].sources[0] for name in names if self.recipes[name].is_plain}
        kinds = {name: self.unit.infos[source].dtype for name, source in sources.items()}
        sources = {
            name: source
            for name, source in sources.items()
            if kinds[name] in BLOCKS or kinds[name] in STORED or source in self.coded
        }
        opened, found = self._opened(list(sources.values())), {}
        for name, source in sources.items():
            file = opened[self.unit.files[source]]
            if isinstance(file, MappedGGUF):
                found[name] = file.packed(self.unit.stored[source])
            elif source in self.coded:
                found[name] = self._coded(source, opened)
            else:
                found[name] = stored_as(kinds[name], file[self.unit.stored[source]])
        return found

    def _opened(self, sources: list[str]) -> "dict[str, MappedFile | MappedGGUF]":
        """The files that hold some keys, opened."""
        opened: dict[str, MappedFile | MappedGGUF] = {}
        for file in sorted({self.unit.files[source] for source in sources}):
            path = self.unit.folder.path(file)
            opened[file] = MappedGGUF(path) if file.endswith(".gguf") else MappedFile(path)
        return opened

    def _coded(self, source: str, opened: "dict[str, MappedFile | MappedGGUF]") -> Packed:
        """One weight with its scale."""
        file, coded = opened[self.unit.files[source]], self.coded[source]
        dtype = self.unit.infos[source].dtype
        return read_coded(source, coded, lambda key: file[self.unit.stored[key]], dtype, where=self.where)


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
    names, coded = take_scales(names, unit.infos, unit.metadata, prefix=prefix, where=unit.path_hint)
    kind = kind_of(part, names)
    raw = {name.removeprefix(prefix): name for name in names if not ignored(kind, name.removeprefix(prefix))}
    layout, left_over = "official", []
    recipes = {name: Recipe((name,)) for name in raw}
    if kind in OTHER_LAYOUTS:
        whose, sign, table = OTHER_LAYOUTS[kind]
        if any(sign.match(name) for name in raw):
            layout = whose
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
        coded=coded,
    )


def _tie_embedding(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    """T5's token table goes by two names, of which a file has one or both: keep it as `shared.weight`."""
    alias = recipes.pop("encoder.embed_tokens.weight", None)
    return recipes if alias is None or "shared.weight" in recipes else {"shared.weight": alias, **recipes}


def _config(unit: Unit) -> dict[str, Any]:
    """config.json beside a unit; empty where there is none."""
    file = (PurePosixPath(unit.name).parent / "config.json").as_posix()
    return read_json(unit.folder, file) if file in unit.folder.files() else {}
