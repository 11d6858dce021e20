"""Files are written whole or not at all."""

import os

import pytest

from sd35 import SettingsError
from sd35.saved.write import check_output, written


def test_a_file_appears_when_it_is_whole(tmp_path) -> None:
    path = tmp_path / "a.png"
    with written(path, overwrite=False) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_interruption_leaves_what_was_there(tmp_path, error, before) -> None:
    path = tmp_path / "a.png"
    if before is not None:
        path.write_bytes(before)

    def write() -> None:
        with written(path, overwrite=True) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert [one.read_bytes() for one in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path) -> None:
    path = tmp_path / "a.png"

    def write() -> None:
        with written(path, overwrite=False) as temporary:
            temporary.write_bytes(b"mine")
            path.write_bytes(b"theirs")

    with pytest.raises(FileExistsError):
        write()
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"theirs"]


def check(path, *, overwrite=False) -> None:
    check_output([path], suffix=".png", overwrite=overwrite)


def test_what_cannot_be_written_is_refused_early(tmp_path) -> None:
    (tmp_path / "there.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FileExistsError, match=r"there\.png exists"):
        check(tmp_path / "there.png")
    check(tmp_path / "there.png", overwrite=True)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check(tmp_path / "folder.png", overwrite=True)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        check(tmp_path / "nowhere" / "a.png")
    with pytest.raises(SettingsError, match=r"must be a \.png file"):
        check(tmp_path / "a.jpg")


def test_a_folder_that_the_system_protects_is_refused_early(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="may not be written to"):
        check(tmp_path / "a.png")


def test_the_error_of_a_write_names_the_file_that_was_asked_for(tmp_path) -> None:
    path = tmp_path / "gone" / "a.png"
    with (
        pytest.raises(FileNotFoundError, match=r"cannot write .*a\.png$"),
        written(path, overwrite=False) as one,
    ):
        one.write_bytes(b"")
