"""Where the files of a source lie: one interface for a folder on disk and for a repository on the Hub."""

import json
from pathlib import Path
from typing import Any, Protocol

from .errors import FileFormatError, SourceError
from .file import Header, read_header
from .packed.gguf import read_gguf

BESIDE = ("config.json", "adapter_config.json")
"""What is read beside a file that is named alone: an activation, or a LoRA's alpha."""


class Folder(Protocol):
    """Files by name. Only `path` needs the bytes of a file: a remote folder downloads there, not before."""

    name: str
    """How messages call this folder."""

    def files(self) -> list[str]:
        """Every file's path relative to the folder, with forward slashes, sorted."""
        ...

    def header(self, file: str) -> Header:
        """The header of a safetensors or GGUF file."""
        ...

    def path(self, file: str) -> Path:
        """The file on this machine."""
        ...

    def is_here(self, file: str) -> bool:
        """Whether `path` needs no download."""
        ...


class LocalFolder:
    """A folder on disk."""

    def __init__(self, root: Path, name: str | None = None) -> None:
        self.root = root
        self.name = name or str(root)

    def files(self) -> list[str]:
        """Files in the folder and in its direct subfolders: no layout is deeper."""
        try:
            found = [*self.root.glob("*"), *self.root.glob("*/*")]
            names = [path.relative_to(self.root).as_posix() for path in found if path.is_file()]
            return sorted(name for name in names if not is_hidden(name))
        except OSError as error:
            raise SourceError(f"{self.root} cannot be listed: {error.strerror or error}") from error

    def header(self, file: str) -> Header:
        """The checked header; raises as `read_header` and `read_gguf` do."""
        path = self.root / file
        return read_gguf(path)[0] if file.endswith(".gguf") else read_header(path)

    def path(self, file: str) -> Path:
        """The file's own path."""
        return self.root / file

    def is_here(self, file: str) -> bool:
        """True: nothing is remote."""
        return True

    def broken_links(self) -> list[str]:
        """Links to weights that are not there, as a download that was interrupted leaves them."""
        found = [*self.root.glob("*.safetensors"), *self.root.glob("*/*.safetensors")]
        return sorted(
            path.relative_to(self.root).as_posix()
            for path in found
            if path.is_symlink() and not path.exists()
        )


class SingleFile(LocalFolder):
    """One file alone, seen as a folder that holds nothing else."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent, name=str(path))
        self._file = path.name

    def files(self) -> list[str]:
        """The one file, and the configurations beside it."""
        return [self._file, *(name for name in BESIDE if (self.root / name).is_file())]


class Nowhere:
    """No folder at all: for tensors that are given, not read."""

    name = ""

    def files(self) -> list[str]:
        """Nothing."""
        return []

    def header(self, file: str) -> Header:
        """Never there."""
        raise SourceError(f"there is no file {file}")

    def path(self, file: str) -> Path:
        """Never there."""
        raise SourceError(f"there is no file {file}")

    def is_here(self, file: str) -> bool:
        """Never."""
        return False


def is_hidden(file: str) -> bool:
    """Whether a name begins with a dot: what an operating system or an editor left is not looked at."""
    return any(part.startswith(".") for part in file.split("/"))


def read_json(folder: Folder, file: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileFormatError: it does not parse, or holds something else.
    """
    path = folder.path(file)
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read as JSON ({error}): fetch it again") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} should hold a JSON object and holds a {type(value).__name__}")
    return value
