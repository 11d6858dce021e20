import json
import shutil

import pytest

from sd35 import SettingsError
from sd35.train.folder import read_folder


def test_captions_are_read_from_wherever_they_are(folder) -> None:
    (folder / "0.txt").rename(folder / "kept")
    (folder / "0.json").write_text(json.dumps({"caption": "from json"}))
    (folder / "1.txt").unlink()
    (folder / "metadata.jsonl").write_text('\n{"file_name": "1.png", "text": "from a row"}\n')
    (folder / "2.txt").unlink()
    examples, notes = read_folder(folder, "one for all")
    assert [one.caption for one in examples] == [
        "from json",
        "from a row",
        "one for all",
        "a red circle left",
    ]
    assert [one.size for one in examples] == [(32, 32), (40, 40), (64, 32), (33, 30)]
    assert notes == []


def test_what_cannot_be_read_is_named_and_left_out_only_if_asked(folder) -> None:
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(SettingsError, match=r"1\.png cannot be read as a picture .*: mend or remove it"):
        read_folder(folder)
    examples, notes = read_folder(folder, skip_unreadable=True)
    assert len(examples) == 3
    assert len(notes) == 1
    assert "1.png" in notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "is no folder"),
        (lambda folder: [one.unlink() for one in folder.glob("*.png")], "there are no pictures in"),
        (lambda folder: (folder / "0.txt").unlink(), r"0\.png has no caption: write it into 0\.txt"),
        (lambda folder: (folder / "0.png").unlink(), r"0\.txt has no picture beside its caption"),
        (lambda folder: (folder / "metadata.jsonl").write_text("{"), "line 1: expected"),
        (
            lambda folder: (folder / "metadata.jsonl").write_text('{"file_name": "9.png", "text": "x"}'),
            r"9\.png has no picture",
        ),
        (lambda folder: (folder / "0.txt").write_bytes(b"\xff\xfe\x00"), "is not UTF-8 text"),
    ],
)
def test_a_bad_folder_is_refused(folder, change, message) -> None:
    change(folder)
    with pytest.raises(SettingsError, match=message):
        read_folder(folder)
