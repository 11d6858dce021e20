"""From what a caller writes to the parts that can be loaded from it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .component import Component, components_of
from .errors import MissingComponent, SourceError
from .fetch import PUBLIC_VOCABULARIES, what_to_fetch
from .file import read_header
from .folder import Folder, LocalFolder, SingleFile
from .hub import HubFile, HubName, open_repository
from .parts import PARTS
from .recognise import described_strays
from .unit import units_of

TINY = Path(__file__).parent / "tiny"
"""The embedded model, in the layout of an official folder."""

EMBEDDED: Mapping[str, Path] = {"tiny": TINY, "outline": TINY.parent / "outline"}
"""What ships with the project, by name: the embedded model, and a ControlNet for it that reads outlines."""

PLACES: Mapping[str, tuple[str, ...]] = {
    "mmdit": ("", "transformer"),
    "vae": ("vae", ""),
    "clip_l": ("text_encoders", "text_encoder", ""),
    "clip_g": ("text_encoders", "text_encoder_2", ""),
    "t5": ("text_encoders", "text_encoder_3", ""),
    "controlnet": ("", "controlnet"),
}
"""Where in a folder each part is looked for; the first place that has it wins.

Official repositories on the Hub hold the MM-DiT twice. The single file in the root wins over
`transformer/`, because its tensors are used as they lie, while q, k and v of a diffusers folder have
to be joined in memory. A VAE or an encoder in a folder of its own wins over one inside a big file.
"""

TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    "clip_l": ("tokenizer", "tokenizer_2"),
    "clip_g": ("tokenizer_2", "tokenizer"),
    "t5": ("tokenizer_3",),
}
"""The subfolders with each encoder's tokenizer, in both layouts. The CLIPs share one vocabulary."""

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "spiece.model")
"""What a tokenizer is read from."""

LOOSE: Mapping[str, frozenset[str]] = {
    "clip_l": frozenset({"vocab.json", "merges.txt"}),
    "clip_g": frozenset({"vocab.json", "merges.txt"}),
    "t5": frozenset({"spiece.model"}),
}
"""What tells an encoder's tokenizer in the folder itself: the files that only its kind has."""


@dataclass(frozen=True)
class Source:
    """What lies behind a name: the parts found, the tokenizers, and keys that belong to no part."""

    name: str
    folder: Folder
    components: Mapping[str, Component]
    tokenizers: Mapping[str, str]  # encoder to the subfolder with its tokenizer
    stray: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # file without any part to its keys
    also: tuple[str, ...] = ()  # parts that are there and were not asked for
    broken: tuple[str, ...] = ()  # links to weights that are not there

    def component(self, part: str) -> Component:
        """One part.

        Raises:
            MissingComponent: it is not there; the message says what is, and what to fetch.
        """
        if part in self.components:
            return self.components[part]
        held = ", ".join(PARTS[other] for other in (*self.components, *self.also)) or "no part of a model"
        others = "".join(f"; {one}" for one in (described_strays(self.stray), links(self.broken)) if one)
        raise MissingComponent(
            f"{self.name} holds no {PARTS[part]} (found: {held}{others}). To have one, fetch "
            f"{what_to_fetch(part, self.components)}, or name another source for it",
            part,
        )

    def tokenizer(self, part: str) -> Path:
        """The folder on this machine with one encoder's tokenizer, downloaded if need be.

        Raises:
            MissingComponent: there is none.
        """
        if part not in self.tokenizers:
            raise MissingComponent(
                f"{self.name} holds no tokenizer for {PARTS[part]}: a file of weights never does. Put "
                f"{what_to_fetch(TOKENIZERS[part][0], self.components)} beside the weights and name that "
                f"folder, or {PUBLIC_VOCABULARIES[part]} into a folder, and name that as the source "
                "of the tokenizers",
                "tokenizers",
            )
        directory = self.tokenizers[part]
        paths = [self.folder.path(file) for file in self._tokenizer_files(directory)]
        return paths[0].parent

    def _tokenizer_files(self, directory: str) -> list[str]:
        paths = [PurePosixPath(file) for file in self.folder.files()]
        return [str(path) for path in paths if str(path.parent) == directory and path.name in TOKENIZER_FILES]


def resolve(source: str | Path, parts: Collection[str] | None = None) -> Source:
    """Find out what a source holds, from file names and headers; no weights are read.

    Args:
        source: "tiny" or "outline" (see `EMBEDDED`; a folder of that name is "./tiny"), a .safetensors or
            .gguf file, a folder in the official or the diffusers layout, or on the Hub "owner/name",
            "owner/name@revision", "owner/name/file.safetensors" and both together.
        parts: look for these only; None means all.

    Raises:
        SourceError: there is nothing of this name, or no part of a model in it.
        FileFormatError: a file is damaged.
        HubError: the Hub refused, or cannot be reached; see its subclasses.
    """
    folder = open_source(source)
    wanted = tuple(PARTS) if parts is None else tuple(parts)
    components: dict[str, Component] = {}
    stray: dict[str, tuple[str, ...]] = {}
    scanner = _Scanner(folder, stray)
    for part in wanted:
        for place in PLACES[part]:
            component = scanner.best(part, place)
            if component is not None:
                components[part] = component
                break
    tokenizers = _tokenizers(folder)
    broken = tuple(folder.broken_links()) if isinstance(folder, LocalFolder) else ()
    if wanted and not scanner.parts_seen and not tokenizers:
        raise SourceError(_no_model(folder, stray, broken))
    also = tuple(part for part in PARTS if part in scanner.parts_seen and part not in components)
    return Source(folder.name, folder, components, tokenizers, stray, also, broken)


def _tokenizers(folder: Folder) -> dict[str, str]:
    """Encoder to the subfolder with its tokenizer; "." where its files lie in the folder itself."""
    files: dict[str, set[str]] = {}
    for path in map(PurePosixPath, folder.files()):
        if path.name in TOKENIZER_FILES:
            files.setdefault(str(path.parent), set()).add(path.name)
    found = {}
    for part, places in TOKENIZERS.items():
        loose = ["."] if LOOSE[part] <= files.get(".", set()) else []
        if there := [place for place in places if place in files] + loose:
            found[part] = there[0]
    return found


def open_source(source: str | Path) -> Folder:
    """Tell what kind of source a name is, and open it as a folder; raises as `resolve` does."""
    if source in EMBEDDED:
        return LocalFolder(EMBEDDED[str(source)], name=str(source))
    path = Path(source).expanduser()
    if path.is_dir():
        return LocalFolder(snapshot_of(path), name=str(path))
    if path.is_symlink() and not path.exists():
        raise SourceError(f"{path} is a link to {path.readlink()}, which is not there: fetch the file again")
    if path.exists():
        return _open_file(path)
    hub_name = HubName.parse(source) if isinstance(source, str) else None
    if hub_name is None or (path.parent != Path() and Path(path.parts[0]).is_dir()):
        raise SourceError(
            f"there is no file or folder {source!s}; a source is 'tiny', a .safetensors or .gguf file, a "
            "folder, or 'owner/name' or 'owner/name@revision' on the Hugging Face Hub"
        )
    repository = open_repository(hub_name)
    return repository if hub_name.file is None else HubFile(repository, hub_name.file)


def snapshot_of(path: Path) -> Path:
    """The files of a repository in the Hub's cache, where a folder is its root there; else the folder itself.

    Raises:
        SourceError: the cache has several revisions, and none is the main one.
    """
    if not (path.name.startswith("models--") and (path / "snapshots").is_dir()):
        return path
    revisions = sorted(one.name for one in (path / "snapshots").iterdir() if one.is_dir())
    main = path / "refs" / "main"
    commit = main.read_text().strip() if main.is_file() else ""
    if commit not in revisions and len(revisions) != 1:
        raise SourceError(
            f"{path} is a repository in the Hub's cache, with the revisions {', '.join(revisions) or 'none'} "
            f"and no main one: name {path}/snapshots/REVISION, or 'owner/name'"
        )
    return path / "snapshots" / (commit if commit in revisions else revisions[0])


def _open_file(path: Path) -> Folder:
    """Open one file: of weights, or the index of a sharded checkpoint together with its shards."""
    if path.name.endswith(".safetensors.index.json"):
        return LocalFolder(path.parent)
    if path.suffix not in (".safetensors", ".gguf"):
        read_header(path)  # says what the file is, where it is no safetensors file
        raise SourceError(
            f"{path} is a safetensors file under another name: rename it to end in .safetensors"
        )
    return SingleFile(path)


class _Scanner:
    """Reads each directory of a folder once, and ranks what offers the same part."""

    def __init__(self, folder: Folder, stray: dict[str, tuple[str, ...]]) -> None:
        self._folder = folder
        self._stray = stray
        self._found: dict[str, list[list[Component]]] = {}
        self.parts_seen: set[str] = set()

    def best(self, part: str, directory: str) -> Component | None:
        """The component of this kind that a directory offers, or None.

        A file of its own wins over one that holds more parts, and full precision over fewer bits.

        Raises:
            SourceError: two files offer it, and nothing tells which is meant.
        """
        ranked = []
        for siblings in self._scan(directory):
            for component in siblings:
                if component.part == part:
                    ranked.append((len(siblings), component.in_few_bits, component))
        ranked.sort(key=lambda entry: entry[:2])
        if len(ranked) > 1 and ranked[0][:2] == ranked[1][:2]:
            names = ", ".join(component.unit.name for *_, component in ranked)
            raise SourceError(
                f"{self._folder.name} holds more than one {PARTS[part]} ({names}): name the file you mean"
            )
        return ranked[0][2] if ranked else None

    def _scan(self, directory: str) -> list[list[Component]]:
        """The components of every unit in a directory."""
        if directory not in self._found:
            self._found[directory] = []
            for unit in units_of(self._folder, directory):
                components, stray = components_of(unit)
                self._found[directory].append(components)
                self.parts_seen |= {component.part for component in components}
                if stray:
                    self._stray[unit.name] = tuple(stray)
        return self._found[directory]


def links(broken: Collection[str]) -> str:
    """Say that links are broken; nothing where there are none."""
    if not broken:
        return ""
    several = len(broken) > 1
    return (
        f"{', '.join(broken)} {'are links to files that are' if several else 'is a link to a file that is'} "
        f"not there: fetch {'them' if several else 'it'} again"
    )


def _no_model(folder: Folder, stray: Mapping[str, tuple[str, ...]], broken: Collection[str]) -> str:
    """Say that a source is no model, and what was found instead."""
    if stray:
        return f"{folder.name} holds no part of a Stable Diffusion 3 model: {described_strays(stray)}"
    if broken:
        return f"{folder.name} is no model: {links(broken)}"
    files = folder.files()
    pickled = [file for file in files if file.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    if pickled:
        return (
            f"{folder.name} holds weights only as pickles ({', '.join(pickled[:3])}), which can run code and "
            "are never opened here: fetch the .safetensors version"
        )
    cached = sorted(Path(folder.name).glob("models--*--*")) if isinstance(folder, LocalFolder) else []
    if cached:
        names = ", ".join(one.name.removeprefix("models--").replace("--", "/", 1) for one in cached[:6])
        return f"{folder.name} is the Hub's cache, no model: name a repository of it ({names})"
    listed = f"it has {len(files)} other files" if files else "it is empty"
    return (
        f"{folder.name} is no model: no .safetensors file in it, nor in the subfolders "
        f"text_encoders/, transformer/, vae/ or text_encoder/ ({listed}). Name a file, an official folder or "
        "a diffusers folder"
    )
