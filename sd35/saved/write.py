"""Writing files whole or not at all, and refusing early what could not be written."""

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import SettingsError


def check_output(paths: Sequence[Path], *, suffix: str, overwrite: bool) -> None:
    """See that files can be written, before the work whose results they are to hold.

    Args:
        paths: the files.
        suffix: how their names must end, such as ".png".
        overwrite: whether they may exist.

    Raises:
        SettingsError: a name ends otherwise.
        FileExistsError: a file exists and may not be replaced.
        OSError: a folder does not exist or may not be written to, or a path is a folder.
    """
    for path in paths:
        if path.suffix.lower() != suffix:
            raise SettingsError(f"the output must be a {suffix} file, got {str(path)!r}")
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"there is no folder {path.parent} to write {path.name} into: make it first"
            )
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: name a {suffix} file in it")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"{path.parent} may not be written to: choose another output")
        _refuse_existing(path, overwrite=overwrite)


@contextmanager
def written(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and rename it when the block ends.

    Whoever looks at `path` sees all of the file or none. Where the block raises, or is interrupted, the
    temporary file is removed.

    Raises:
        FileExistsError: `path` exists, perhaps only by now, and may not be replaced.
        OSError: the file cannot be written; the message names `path`, not the temporary file.
    """
    temporary = path.with_name(f".sd35-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        _refuse_existing(path, overwrite=overwrite)
        temporary.chmod(0o666 & ~_umask())  # some writers make files that only their owner may read
        temporary.replace(path)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise type(error)(error.errno, f"{error.strerror}: cannot write {path}") from error
    except SafetensorError as error:
        if (told := re.search(r"os error (\d+)", str(error))) is None:
            raise
        number = int(told[1])
        raise OSError(number, f"{os.strerror(number)}: cannot write {path}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """What new files of this process are not allowed; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists: choose another output, or replace it (overwrite=True, --overwrite)"
        )
