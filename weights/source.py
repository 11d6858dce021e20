"""From what a caller writes to the parts that can be loaded from it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .component import Component, components_of, units_of
from .errors import MissingComponent, SourceError
from .file import read_header
from .folder import Folder, LocalFolder, SingleFile
from .hub import HubFile, HubName, open_repository
from .parts import PARTS

TINY = Path(__file__).parent / "tiny"
"""The embedded model, in the layout of an official folder."""

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

FETCH: Mapping[str, str] = {
    "mmdit": "sd3.5_medium.safetensors (or the folder transformer/)",
    "vae": "sd3.5_medium.safetensors, which holds it too (or the folder vae/)",
    "clip_l": "text_encoders/clip_l.safetensors (or the folder text_encoder/)",
    "clip_g": "text_encoders/clip_g.safetensors (or the folder text_encoder_2/)",
    "t5": "text_encoders/t5xxl_fp16.safetensors, 9.8 GB, or t5xxl_fp8_e4m3fn.safetensors, 4.9 GB "
    "(or the folder text_encoder_3/)",
    "controlnet": "sd3.5_large_controlnet_canny.safetensors, _depth or _blur, "
    "from stabilityai/stable-diffusion-3.5-controlnets",
    "tokenizer": "the folder tokenizer/ (vocab.json and merges.txt)",
    "tokenizer_2": "the folder tokenizer_2/ (vocab.json and merges.txt)",
    "tokenizer_3": "the folder tokenizer_3/ (tokenizer.json or spiece.model)",
}
"""What to fetch for a missing part, from stabilityai/stable-diffusion-3.5-medium unless said otherwise."""


@dataclass(frozen=True)
class Source:
    """What lies behind a name: the parts found, the tokenizers, and keys that belong to no part."""

    name: str
    folder: Folder
    components: Mapping[str, Component]
    tokenizers: Mapping[str, str]  # encoder to the subfolder with its tokenizer
    stray: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # file without any part to its keys
    also: tuple[str, ...] = ()  # parts that were seen on the way and not looked for

    def component(self, part: str) -> Component:
        """One part.

        Raises:
            MissingComponent: it is not there; the message says what is, and what to fetch.
        """
        if part in self.components:
            return self.components[part]
        held = ", ".join(PARTS[other] for other in (*self.components, *self.also)) or "no part of a model"
        raise MissingComponent(
            f"{self.name} holds no {PARTS[part]} (found: {held}). To have one, fetch {FETCH[part]}, "
            "or name another source for it"
        )

    def tokenizer(self, part: str) -> Path:
        """The folder on this machine with one encoder's tokenizer, downloaded if need be.

        Raises:
            MissingComponent: there is none.
        """
        if part not in self.tokenizers:
            raise MissingComponent(
                f"{self.name} holds no tokenizer for {PARTS[part]}: a single weights file never does. "
                f"Put {FETCH[TOKENIZERS[part][0]]} from stabilityai/stable-diffusion-3.5-medium beside the "
                'weights and name the folder, or pass tokenizers="another source"'
            )
        directory = self.tokenizers[part]
        paths = [self.folder.path(f"{directory}/{file}") for file in self._tokenizer_files(directory)]
        return paths[0].parent

    def _tokenizer_files(self, directory: str) -> list[str]:
        files = [PurePosixPath(file) for file in self.folder.files()]
        return [path.name for path in files if str(path.parent) == directory and path.name in TOKENIZER_FILES]


def resolve(source: str | Path, parts: Collection[str] | None = None) -> Source:
    """Find out what a source holds, from file names and headers; no weights are read.

    Args:
        source: "tiny" (the embedded model; a folder of that name is "./tiny"), a .safetensors file, a
            folder in the official or the diffusers layout, or on the Hub "owner/name",
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
    present = {
        str(PurePosixPath(file).parent)
        for file in folder.files()
        if PurePosixPath(file).name in TOKENIZER_FILES
    }
    tokenizers = {
        part: next(place for place in places if place in present)
        for part, places in TOKENIZERS.items()
        if any(place in present for place in places)
    }
    if wanted and not scanner.parts_seen and not tokenizers:
        raise SourceError(_no_model(folder, stray))
    also = tuple(part for part in PARTS if part in scanner.parts_seen and part not in components)
    return Source(folder.name, folder, components, tokenizers, stray, also)


def open_source(source: str | Path) -> Folder:
    """Tell what kind of source a name is, and open it as a folder; raises as `resolve` does."""
    if source == "tiny":
        return LocalFolder(TINY, name="tiny")
    path = Path(source).expanduser()
    if path.is_dir():
        return LocalFolder(path)
    if path.exists():
        return _open_file(path)
    hub_name = HubName.parse(source) if isinstance(source, str) else None
    if hub_name is None or (path.parent != Path() and Path(path.parts[0]).is_dir()):
        raise SourceError(
            f"there is no file or folder {source!s}; a source is 'tiny', a .safetensors file, a folder, or "
            "'owner/name' or 'owner/name@revision' on the Hugging Face Hub"
        )
    repository = open_repository(hub_name)
    return repository if hub_name.file is None else HubFile(repository, hub_name.file)


def _open_file(path: Path) -> Folder:
    """Open one file: of weights, or the index of a sharded checkpoint together with its shards."""
    if path.name.endswith(".safetensors.index.json"):
        return LocalFolder(path.parent)
    if path.suffix != ".safetensors":
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

        A file of its own wins over one that holds more parts, and full precision over fp8.

        Raises:
            SourceError: two files offer it with equal right.
        """
        ranked = []
        for siblings in self._scan(directory):
            for component in siblings:
                if component.part == part:
                    is_fp8 = any(info.dtype.startswith("F8") for info in component.sources.values())
                    ranked.append((len(siblings), is_fp8, component))
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


def _no_model(folder: Folder, stray: Mapping[str, tuple[str, ...]]) -> str:
    """Say that a source is no model, and what was found instead."""
    for file, names in stray.items():
        return (
            f"{folder.name}: {file} holds no part of a Stable Diffusion 3 model, but {len(names)} other "
            f"tensors, the first being {names[0]}. Another model's weights and LoRA files are not loaded here"
        )
    files = folder.files()
    pickled = [file for file in files if file.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    if pickled:
        return (
            f"{folder.name} holds weights only as pickles ({', '.join(pickled[:3])}), which can run code and "
            "are never opened here: fetch the .safetensors version"
        )
    listed = f"it has {len(files)} other files" if files else "it is empty"
    return (
        f"{folder.name} is no model: no .safetensors file in it, nor in the subfolders "
        f"text_encoders/, transformer/, vae/ or text_encoder/ ({listed}). Name a file, an official folder or "
        "a diffusers folder"
    )
