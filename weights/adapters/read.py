"""From a LoRA's file to a checked `Adapter`, or to one line that says why it is none."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from ..errors import AdapterError, CheckpointError, SourceError
from ..file import Header, MappedFile
from ..folder import Folder, read_json
from ..parts import PARTS, ignored
from ..source import open_source
from .fit import Shape, check_alpha, check_whole, fitted, kind_of
from .names import SUFFIXES, Key, foreign, read_key
from .scales import PeftConfig, peft_configs
from .value import Adapter, Update, rank_of

FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What the file is called in a folder that PEFT or diffusers wrote."""

Shapes = Mapping[str, Mapping[str, Shape]]
"""Part to the shapes of its tensors, by official key."""


def read_adapter(source: str | Path, shapes: Shapes) -> Adapter:
    """Read a LoRA, LoHa, LoKr, DoRA or full difference, in the spelling of any trainer, and check it.

    Args:
        source: a .safetensors file, a folder with one, or "owner/name[/file][@revision]" on the Hub.
        shapes: of the model that it is for. Keys of parts that are not here are passed over, and listed.

    Raises:
        AdapterError: it is no adapter of this model; nothing of it is used. The message names what it is,
            or the first key or layer that has no place, does not fit or is not finite.
        CheckpointError: there is no such file, or it is damaged.
    """
    name, path, config = open_adapter(source)
    opened = MappedFile(path)
    keys, passed_over = _read_keys(opened.header, shapes, name)
    configs = peft_configs(opened.header.metadata, config, name=name)
    groups: dict[tuple[str, str, str], dict[str, Key]] = defaultdict(dict)
    for key, read in keys.items():
        groups[read.part, read.place.ours, read.place.third][key] = read
    updates = tuple(
        _update(group, {key: opened[key] for key in group}, opened.header, shapes, configs, name)
        for group in groups.values()
    )
    _check_targets(updates, name)
    return Adapter(
        name,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        dialect_of(keys.values()),
        updates,
        passed_over,
        tuple(_notes(updates, configs, opened.header)),
    )


def open_adapter(source: str | Path) -> tuple[str, Path, Mapping[str, Any] | None]:
    """The name for messages, the file of a LoRA, and the adapter_config.json beside it where there is one."""
    folder = open_source(source)
    file = _choose(folder)
    beside = (PurePosixPath(file).parent / "adapter_config.json").as_posix()
    config = read_json(folder, beside) if beside in folder.files() else None
    name = folder.name if folder.name.endswith(file) else f"{folder.name}/{file}"
    return name, folder.path(file), config


def is_adapter(source: str | Path) -> bool:
    """Whether a source's keys are those of an adapter rather than of a model, ours or another's."""
    try:
        folder = open_source(source)
        keys = folder.header(_choose(folder)).tensors
    except CheckpointError:
        return False
    return sum(key.endswith(tuple(SUFFIXES)) or "lora" in key.lower() for key in keys) > len(keys) / 2


def _choose(folder: Folder) -> str:
    """The file of a folder that holds the adapter."""
    found = [file for file in folder.files() if file.endswith(".safetensors")]
    named = [file for file in found if PurePosixPath(file).name in FILES]
    if len(named or found) == 1:
        return (named or found)[0]
    what = f"more than one file ({', '.join(found[:4])})" if found else "no .safetensors file"
    raise SourceError(f"{folder.name} holds {what}: name the LoRA's own .safetensors file")


def _read_keys(header: Header, shapes: Shapes, name: str) -> tuple[dict[str, Key], dict[str, str]]:
    """Read every key of a file, or refuse the file: what has no place is not left out in silence.

    Returns:
        The keys with a place in this model, and those that change nothing in it, each with the reason.
    """
    depths = {part: _depth(part, own) for part, own in shapes.items()}
    read = {key: read_key(key, depths) for key in header.tensors}
    unknown = [key for key, what in read.items() if what is None]
    if unknown:
        raise AdapterError(_no_place(name, unknown, list(header.tensors)))
    keys, passed_over = {}, {}
    for key, what in read.items():
        assert what is not None
        own = shapes.get(what.part)
        if own is None:
            passed_over[key] = f"it is of the {PARTS[what.part]}, which is not here"
        elif f"{what.place.ours}.weight" in own:
            keys[key] = what
        elif ignored(what.part, f"{what.place.ours}.weight"):
            passed_over[key] = "SD3 does not project CLIP-L"
        else:
            raise AdapterError(
                f"{name}: {key} has no place: this model's {PARTS[what.part]} has no {what.place.ours}"
                f"{_why_absent(what, depths)}"
            )
    if not keys:
        parts = sorted({PARTS[what.part] for what in read.values() if what is not None})
        raise AdapterError(f"{name} changes only the {' and the '.join(parts)}, which is not here")
    return keys, passed_over


def _depth(part: str, own: Mapping[str, Shape]) -> int:
    """How many layers a part has."""
    stack = {"mmdit": "joint_blocks.", "t5": "encoder.block."}.get(part, "text_model.encoder.layers.")
    numbers = [int(key[len(stack) :].split(".")[0]) for key in own if key.startswith(stack)]
    return max(numbers, default=-1) + 1


def _why_absent(key: Key, depths: Mapping[str, int]) -> str:
    """What a layer that is not there says about the model that a LoRA is for."""
    layers = [int(piece) for piece in key.place.ours.split(".") if piece.isdigit()]
    if key.part == "mmdit" and layers and layers[0] >= depths["mmdit"]:
        deeper = "SD3.5-large, which has 38" if 24 <= layers[0] < 38 else "a deeper model"
        return f", which has {depths['mmdit']} blocks: it is a LoRA of {deeper}"
    if ".attn2." in key.place.ours:
        return ": second attentions are in blocks 0 to 12 of SD3.5-medium alone"
    return ""


def _no_place(name: str, unknown: list[str], keys: list[str]) -> str:
    """Say what a file is that has keys of no table."""
    what = foreign(unknown)
    listed = f"{unknown[0]}" + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
    if what is not None:
        return f"{name} is {what} (it has {listed}), which is not supported: use a LoRA of SD3 or SD3.5"
    if not any(key.endswith(tuple(SUFFIXES)) or "lora" in key.lower() for key in keys):
        return f"{name} is no LoRA but weights themselves ({listed}): name it as the model instead"
    return (
        f"{name}: {listed} ({len(unknown)} of {len(keys)} keys) {'has' if len(unknown) == 1 else 'have'} no "
        "place in an SD3 model: nothing is loaded of a file that is understood in part"
    )


def _update(
    group: Mapping[str, Key],
    tensors: Mapping[str, Tensor],
    header: Header,
    shapes: Shapes,
    configs: Mapping[str, PeftConfig],
    name: str,
) -> Update:
    """Make one update of the keys that aim at the same rows."""
    first = next(iter(group.values()))
    where = f"{name}: {first.place.ours}{first.place.third and f' ({first.place.third})'}"
    twice = [role for role, count in Counter(key.role for key in group.values()).items() if count > 1]
    if twice:
        both = ", ".join(key for key, read in group.items() if read.role == twice[0])
        raise AdapterError(f"{where} is named twice ({both}): which is meant cannot be known, keep one")
    roles = {read.role: tensors[key] for key, read in group.items()}
    kind = check_whole(kind_of(list(roles)), roles, where=where)
    rank = rank_of(kind, roles)
    alpha = check_alpha(roles.pop("alpha", None), matters=rank is not None, where=where)
    scale = 1.0 if alpha is None or not rank else alpha / rank
    if alpha is None and rank and first.part in configs:
        alpha, scale = configs[first.part].scale(_module(first, group), rank, name=name)
    own, path = shapes[first.part], first.place.ours
    update = Update(
        first.part,
        path,
        kind,
        roles,
        tuple(group),
        rows=(0, 0),
        swap=first.place.change == "swap",
        rank=rank,
        alpha=alpha,
        scale=scale,
        outside="dora_scale" in roles and _by_lycoris(first, header),
    )
    return fitted(
        update, own[f"{path}.weight"], own.get(f"{path}.bias"), third=first.place.third, where=where
    )


def _module(first: Key, group: Mapping[str, Key]) -> str:
    """A module's name as the file spells it."""
    key = next(iter(group))
    return key.removeprefix(first.prefix).removesuffix(first.suffix)


def _by_lycoris(key: Key, header: Header) -> bool:
    """Whether LyCORIS wrote a file, by the names that it gives; OneTrainer shares its suffixes."""
    return key.prefix == "lycoris_" or header.metadata.get("ss_network_module", "").startswith("lycoris")


def _check_targets(updates: tuple[Update, ...], name: str) -> None:
    """Refuse two updates of the same rows."""
    seen: dict[tuple[str, str], list[Update]] = defaultdict(list)
    for update in updates:
        for other in seen[update.part, update.path]:
            if update.rows[0] < other.rows[1] and other.rows[0] < update.rows[1]:
                raise AdapterError(
                    f"{name}: {other.keys[0]} and {update.keys[0]} change the same rows of {update.path}: "
                    "which is meant cannot be known, keep one"
                )
        seen[update.part, update.path].append(update)


def dialect_of(keys: Iterable[Key]) -> str:
    """Which spelling keys have, most common first, by those of the transformer where there are any."""
    keys = list(keys)
    own = [read for read in keys if read.part == "mmdit"] or keys
    spellings = Counter((read.prefix, read.layout) for read in own)
    return ", ".join(f"{prefix or 'no prefix'} + {layout}" for (prefix, layout), _ in spellings.most_common())


def _notes(updates: tuple[Update, ...], configs: Mapping[str, PeftConfig], header: Header) -> list[str]:
    """What is worth knowing of a file that loads."""
    notes = []
    if any(update.alpha is not None and update.alpha < 0 for update in updates):
        notes.append("alpha is negative: the update is turned round, as in a slider")
    peft = any(update.kind == "lora" for update in updates) and not configs
    if peft and all(update.alpha is None for update in updates if update.kind == "lora"):
        notes.append("no alpha is stored: the scale is 1, as if alpha were the rank")
    split = header.metadata.get("ss_network_args", "")
    if "split_qkv" in split and '"False"' not in split:
        notes.append(
            "sd-scripts' split_qkv: as every loader does, a third of what was trained acts on q, k and v"
        )
    return notes
