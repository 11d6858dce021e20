"""A repository on the Hugging Face Hub, read file by file through huggingface_hub.

Its cache, progress bars, retries, HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are that
library's. Headers of files that are not in the cache are read with range requests, so that finding
out what a repository holds downloads nothing, and loading a part downloads that part's files alone.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import (
    CheckpointError,
    FileFormatError,
    GatedError,
    HubError,
    LicenceError,
    OfflineError,
    SourceError,
    UnknownRepoError,
    UnknownRevisionError,
)
from .file import DTYPES, Header, TensorInfo, read_header, unsupported_dtype
from .folder import BESIDE, Folder, LocalFolder, is_hidden
from .packed.gguf import read_gguf

_NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+\.(?:safetensors|gguf)))?(?:@(?P<revision>[\w./-]+))?"
)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""What the operating system says where a file cannot be written."""


@dataclass(frozen=True)
class HubName:
    """What "owner/name", with "/file.safetensors" and "@revision" where given, stands for."""

    repo: str
    revision: str = "main"
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName | None":
        """Read a name; None where it cannot be one."""
        match = _NAME.fullmatch(text)
        if (
            match is None
            or match["repo"].startswith(".")
            or match["repo"].endswith((".safetensors", ".gguf"))
        ):
            return None
        return cls(match["repo"], match["revision"] or "main", match["file"])

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"


class Repository:
    """A repository at one commit, seen as a folder."""

    def __init__(self, name: HubName, commit: str, files: list[str]) -> None:
        self.name = str(name)
        self._hub_name = name
        self._commit = commit
        self._files = files

    def files(self) -> list[str]:
        """Every file of the repository."""
        return self._files

    def header(self, file: str) -> Header:
        """The header: of the cached file, or else fetched alone. A GGUF file is downloaded for it."""
        import huggingface_hub

        if file.endswith(".gguf"):
            return read_gguf(self.path(file))[0]
        cached = self._cached(file)
        if cached is not None:
            return read_header(cached)
        with explained(self._hub_name):
            remote = huggingface_hub.HfApi().parse_safetensors_file_metadata(
                self._hub_name.repo, file, revision=self._commit
            )
        for key, info in remote.tensors.items():
            if info.dtype not in DTYPES:
                raise FileFormatError(f"{self.name}/{file}: {unsupported_dtype(key, info.dtype)}")
        tensors = {key: TensorInfo(tuple(info.shape), info.dtype) for key, info in remote.tensors.items()}
        return Header(tensors, remote.metadata)

    def path(self, file: str) -> Path:
        """The file in the cache, downloaded with a progress bar where it is not there yet."""
        import huggingface_hub

        # By name, not by commit: so the cache learns what the name stands for, and serves it offline.
        with explained(self._hub_name):
            return Path(
                huggingface_hub.hf_hub_download(self._hub_name.repo, file, revision=self._hub_name.revision)
            )

    def is_here(self, file: str) -> bool:
        """Whether the cache has the file."""
        return self._cached(file) is not None

    def _cached(self, file: str) -> Path | None:
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(self._hub_name.repo, file, revision=self._commit)
        return Path(found) if isinstance(found, str) else None


class HubFile:
    """One file of a repository, seen as a folder that holds nothing else but the configurations beside it."""

    def __init__(self, repository: Folder, file: str) -> None:
        """Raises SourceError where the repository has no such file."""
        if file not in repository.files():
            weights = [name for name in repository.files() if name.endswith((".safetensors", ".gguf"))]
            raise SourceError(
                f"{repository.name} has no file {file}; it has {', '.join(weights) or 'no weights'}"
            )
        self.name = f"{repository.name}/{file}"
        self._repository = repository
        self._directory = PurePosixPath(file).parent
        beside = [name for name in BESIDE if (self._directory / name).as_posix() in repository.files()]
        self._files = [PurePosixPath(file).name, *beside]

    def files(self) -> list[str]:
        """The file's name alone."""
        return self._files

    def header(self, file: str) -> Header:
        """As `Repository.header`."""
        return self._repository.header((self._directory / file).as_posix())

    def path(self, file: str) -> Path:
        """As `Repository.path`."""
        return self._repository.path((self._directory / file).as_posix())

    def is_here(self, file: str) -> bool:
        """As `Repository.is_here`."""
        return self._repository.is_here((self._directory / file).as_posix())


def open_repository(name: HubName) -> Folder:
    """List a repository at a revision; without a connection, take what the cache has of it.

    Raises:
        HubError: its subclasses tell what went wrong; every message says what to do.
    """
    import huggingface_hub

    try:
        with explained(name):
            info = huggingface_hub.HfApi().model_info(name.repo, revision=name.revision)
    except OfflineError as offline:
        return _cached_snapshot(name, offline)
    names = sorted(sibling.rfilename for sibling in info.siblings or ())
    files = [file for file in names if not is_hidden(file)]
    return Repository(name, info.sha or name.revision, files)


def _cached_snapshot(name: HubName, offline: OfflineError) -> Folder:
    """The folder of the cache that holds a revision; the error where there is none."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # An empty pattern list asks for the folder, whatever part of the repository it holds.
        root = huggingface_hub.snapshot_download(
            name.repo, revision=name.revision, allow_patterns=[], local_files_only=True
        )
    except LocalEntryNotFoundError:
        raise offline from None
    return LocalFolder(Path(root), name=f"{name} (cached)")


@contextmanager
def explained(name: HubName) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into this package's errors, each with what to do."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        explanation = _explain(name, error)
        if explanation is None:
            raise
        raise explanation from error


def _explain(name: HubName, error: Exception) -> HubError | None:
    """Choose the error and write the message; None for what neither the Hub, the network nor the disk did.

    The order matters: a gated repository is also 'not found'.
    """
    import huggingface_hub
    from huggingface_hub import errors

    page = f"https://huggingface.co/{name.repo}"
    token = huggingface_hub.get_token()
    if isinstance(error, errors.GatedRepoError):
        if token is None or _status(error) == 401:
            sent = "no access token was sent" if token is None else "the access token was refused"
            return GatedError(
                f"{name.repo} is gated and {sent}: accept its licence on {page}, make a token on "
                "https://huggingface.co/settings/tokens, then set HF_TOKEN or run `hf auth login`"
            )
        return LicenceError(
            f"{name.repo} is gated and the account behind your token has not been given access: "
            f"log in and accept its licence on {page}, then try again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnknownRepoError(
            f"there is no repository {name.repo} on the Hugging Face Hub, or it is private and "
            f"{'your token may not see it' if token else 'no token was sent'}; nor is there a local file or "
            "folder of that name. Check the spelling (owner/name)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownRevisionError(
            f"{name.repo} has no revision {name.revision!r}: use a branch, a tag or a full commit hash from "
            f"{page}/commits/main, or leave out '@{name.revision}'"
        )
    if isinstance(error, errors.HfHubHTTPError) and _status(error) is not None:
        return HubError(f"the Hugging Face Hub refused {name} (HTTP {_status(error)}): {_first_line(error)}")
    if isinstance(error, errors.HFValidationError | errors.SafetensorsParsingError):
        return HubError(f"{name} cannot be read from the Hugging Face Hub: {_first_line(error)}")
    if isinstance(error, OSError) and error.errno in _DISK:
        return HubError(
            f"{name} cannot be stored in the cache ({error}): make room, or set HF_HOME to a "
            "folder that can be written to"
        )
    # HfHubHTTPError is an error of the HTTP library too, whichever huggingface_hub uses: requests or httpx.
    if not isinstance(error, (OSError, *errors.HfHubHTTPError.__bases__)):
        return None
    is_offline = isinstance(error, errors.OfflineModeIsEnabled)
    why = (
        "HF_HUB_OFFLINE is set" if is_offline else f"there is no connection to the Hub ({_first_line(error)})"
    )
    return OfflineError(
        f"{name} is not in the local cache and {why}: connect once to download it, or name a local file or "
        "folder. The embedded model 'tiny' needs no network"
    )


def _status(error: Any) -> int | None:
    """The HTTP status behind an error, where a server answered."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
