"""The smallest things that are read as a whole: a safetensors file, or the shards of a checkpoint."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from .errors import FileFormatError
from .file import TensorInfo
from .folder import Folder, read_json
from .recognise import unwrap


@dataclass(frozen=True)
class Unit:
    """The smallest thing that is read as a whole: a safetensors file, or a checkpoint's shards."""

    name: str  # the file, the index, or the first shard where there is none, inside its folder
    folder: Folder
    infos: Mapping[str, TensorInfo]  # every key of the files, prefix included, without a trainer's wrappers
    files: Mapping[str, str]  # the same keys to the file that holds each
    stored: Mapping[str, str] = field(default_factory=dict)  # the same keys to how the files spell them
    wrappers: tuple[str, ...] = ()  # that were taken off the keys, as "module."
    metadata: Mapping[str, str] = field(default_factory=dict)  # of the headers

    @classmethod
    def of(
        cls,
        name: str,
        folder: Folder,
        infos: Mapping[str, TensorInfo],
        files: Mapping[str, str],
        metadata: Mapping[str, str] | None = None,
    ) -> "Unit":
        """Describe what files hold, and take off what a trainer put around their keys."""
        stored, wrappers = unwrap(list(infos))
        return cls(
            name,
            folder,
            {key: infos[raw] for key, raw in stored.items()},
            {key: files[raw] for key, raw in stored.items()},
            stored,
            wrappers,
            metadata or {},
        )

    @property
    def path_hint(self) -> str:
        """The unit's path, for what its name may tell."""
        whole = self.folder.name
        return whole if whole.endswith(self.name) else f"{whole}/{self.name}"


def units_of(folder: Folder, directory: str) -> list[Unit]:
    """The units in a directory of a folder: indices with their shards, and files that no index names.

    Where a unit exists plain and as a variant (`model.fp16.safetensors`), only the plain one counts.

    Args:
        folder: where.
        directory: "" for the folder itself.
    """
    paths = [PurePosixPath(file) for file in folder.files()]
    here = [str(path) for path in paths if str(path.parent) == (directory or ".")]
    names = [file for file in here if _is_index(file)]
    indexed = {shard for name in names for shard in _weight_map(folder, name).values()}
    alone = [file for file in here if file.endswith(".safetensors") and file not in indexed]
    names += [file for file in alone if _SHARD.fullmatch(file) is None]
    # On the Hub all of a GGUF file is fetched to tell what it holds: there only one that is named is opened.
    blocks = [file for file in here if file.endswith(".gguf")]
    names += [file for file in blocks if folder.is_here(file) or folder.name.endswith(".gguf")]
    stems = {PurePosixPath(name).name.split(".")[0] for name in names if not _is_variant(name)}
    units = [
        read_unit(folder, name)
        for name in names
        if not (_is_variant(name) and PurePosixPath(name).name.split(".")[0] in stems)
    ]
    return units + [_without_index(folder, shards) for shards in _by_stem(alone)]


_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
"""How the shards of a checkpoint are named."""


def _by_stem(files: Sequence[str]) -> list[list[str]]:
    """Shards, those of one checkpoint together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file):
            groups.setdefault((match["stem"], match["count"]), []).append(file)
    return list(groups.values())


def _without_index(folder: Folder, shards: list[str]) -> Unit:
    """Read shards that no index names: their own headers say what each holds.

    Raises:
        FileFormatError: some of them are not there.
    """
    matches = [match for shard in shards if (match := _SHARD.fullmatch(shard))]
    count = int(matches[0]["count"])
    absent = sorted(set(range(1, count + 1)) - {int(match["number"]) for match in matches})
    if absent:
        raise FileFormatError(
            f"{folder.name}: {shards[0]} is one of {count} shards, and there is no number "
            f"{', '.join(map(str, absent))}: fetch them too, or name the folder that has all"
        )
    headers = {shard: folder.header(shard).tensors for shard in sorted(shards)}
    infos = {key: info for header in headers.values() for key, info in header.items()}
    return Unit.of(shards[0], folder, infos, {key: file for file in headers for key in headers[file]})


def read_unit(folder: Folder, name: str) -> Unit:
    """Read the headers of one unit.

    Raises:
        FileFormatError: a file is damaged, a shard is missing, or the index and the shards disagree.
    """
    if not _is_index(name):
        header = folder.header(name)
        return Unit.of(name, folder, header.tensors, dict.fromkeys(header.tensors, name), header.metadata)
    weight_map = _weight_map(folder, name)
    absent = sorted(set(weight_map.values()) - set(folder.files()))
    if absent:
        raise FileFormatError(f"{folder.name}: {name} names files that are not there: {', '.join(absent)}")
    infos: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        header = folder.header(shard).tensors
        named = {key for key, file in weight_map.items() if file == shard}
        if named != set(header):
            wrong = sorted(named ^ set(header))
            raise FileFormatError(
                f"{folder.name}: {name} and {shard} disagree about {len(wrong)} tensors, among them "
                f"{wrong[0]}: they are of different downloads, fetch both again"
            )
        infos |= header
    return Unit.of(name, folder, infos, weight_map)


def _is_index(name: str) -> bool:
    """Whether a file is the index of a sharded checkpoint, plain or of a variant."""
    return name.endswith(".json") and ".safetensors.index." in name


def _is_variant(name: str) -> bool:
    """Whether a file repeats another in another precision, by the naming of diffusers."""
    stem = PurePosixPath(name).name
    return stem.startswith(("model.", "diffusion_pytorch_model.")) and any(
        f".{word}." in stem or f".{word}-" in stem for word in ("fp16", "bf16", "fp32", "non_ema")
    )


def _weight_map(folder: Folder, name: str) -> dict[str, str]:
    """Key to shard, as an index has it, with the shard's path inside the folder."""
    weight_map = read_json(folder, name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise FileFormatError(f"{folder.name}: {name} has no weight_map of names: fetch it again")
    parent = PurePosixPath(name).parent
    return {key: (parent / file).as_posix() for key, file in weight_map.items()}
