"""A folder of pictures with captions, read and checked before anything is computed."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import SettingsError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LISTING = "metadata.jsonl"
KEYS = ("text", "caption", "prompt")
"""What a caption is called in JSON."""
TURNED = range(5, 9)
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True)
class Example:
    """One picture to learn from."""

    path: Path
    caption: str
    size: tuple[int, int]
    """Width and height, as seen."""
    control: Path | None = None
    """A control picture of the same size, for a ControlNet."""


def read_folder(
    folder: Path, caption: str | None = None, *, skip_unreadable: bool = False
) -> tuple[list[Example], list[str]]:
    """Find the pictures of a folder and their captions.

    A caption is a row {"file_name": ..., "text": ...} of metadata.jsonl, or beside the picture NAME.txt, or
    NAME.json with the key text, caption or prompt.

    Args:
        folder: with pictures; folders within it are looked into as well.
        caption: for each picture that has none.
        skip_unreadable: leave out what cannot be read.

    Returns:
        The examples, by path, and notes on what was left out.

    Raises:
        SettingsError: no pictures; a picture that cannot be read, or that has no caption; a caption whose
            picture is not there.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder} is no folder: --data is a folder of pictures with captions")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise SettingsError(f"there are no pictures in {folder}: expected {', '.join(PICTURES)}")
    listed = _listed(folder)
    _refuse_orphans(folder, paths, listed)
    examples, notes = [], []
    for path in paths:
        try:
            size = _size(path)
        except (OSError, UnidentifiedImageError) as error:
            fault = f"{path} cannot be read as a picture ({error})"
            if not skip_unreadable:
                raise SettingsError(f"{fault}: mend or remove it, or skip such (skip_unreadable)") from error
            notes.append(f"left out: {fault}")
            continue
        own = listed.get(path, _beside(path))
        own = caption if own is None else own
        if own is None:
            raise SettingsError(
                f"{path} has no caption: write it into {path.with_suffix('.txt').name}, or give one caption "
                "for all pictures that have none (caption)"
            )
        examples.append(Example(path, own, size))
    if not examples:
        raise SettingsError(f"no picture in {folder} can be read")
    return examples, notes


def _listed(folder: Path) -> dict[Path, str]:
    """Path to caption, of the rows of metadata.jsonl."""
    file = folder / LISTING
    if not file.exists():
        return {}
    found = {}
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[folder / row["file_name"]] = next(row[key] for key in KEYS if key in row)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise SettingsError(
                f'{file}, line {number}: expected {{"file_name": ..., "text": ...}}, got {line[:80]!r}'
            ) from error
    return found


def _beside(path: Path) -> str | None:
    """The caption in a file of the picture's name; None where there is none."""
    text, data = path.with_suffix(".txt"), path.with_suffix(".json")
    if text.exists():
        return _text(text).strip()
    if not data.exists():
        return None
    try:
        row = json.loads(_text(data))
        return str(next(row[key] for key in KEYS if key in row))
    except (ValueError, TypeError, StopIteration) as error:
        raise SettingsError(f"{data} holds no caption: expected a key of {', '.join(KEYS)}") from error


def _refuse_orphans(folder: Path, paths: list[Path], listed: dict[Path, str]) -> None:
    """Refuse captions whose pictures are not there."""
    stems = {path.with_suffix("") for path in paths}
    others = [path for path in sorted(folder.rglob("*")) if path.with_suffix("") not in stems]
    texts = [
        path for path in others if path.suffix == ".txt" or (path.suffix == ".json" and _is_caption(path))
    ]
    missing = [*sorted(listed.keys() - set(paths)), *texts]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise SettingsError(
            f"{missing[0]} has no picture beside its caption{more}: add it, or remove the caption"
        )


def _is_caption(data: Path) -> bool:
    """Whether a JSON file is a caption's, and not some other's."""
    try:
        row = json.loads(data.read_bytes())
    except ValueError:
        return False
    return isinstance(row, dict) and any(key in row for key in KEYS)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _size(path: Path) -> tuple[int, int]:
    """Width and height as seen, from the header alone."""
    with Image.open(path) as picture:
        width, height = picture.size
        return (height, width) if picture.getexif().get(0x0112) in TURNED else (width, height)
