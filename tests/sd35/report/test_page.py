"""The page: whole, alone, and safe from what is in a prompt."""

import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from sd35 import SettingsError
from sd35.cli import main
from sd35.report import as_page


@pytest.fixture(scope="module")
def page(recorded, tmp_path_factory) -> str:
    (path,) = recorded.save(tmp_path_factory.mktemp("page") / "page.html")
    return path.read_text(encoding="utf-8")


def test_prompts_are_text_wherever_they_stand(page, recorded, outline) -> None:
    seen = outline(page)  # which also sees that elements nest
    assert seen.open == []
    assert "<script" not in page
    assert recorded.result.settings.prompts[0].text in seen.text
    assert not [tag for tag, attributes in seen.elements for name in attributes if name.startswith("on")]


def test_notes_and_negative_prompts_are_text(pipe, tmp_path, outline) -> None:
    evil = '"><img src=x onerror=alert(1)> '
    recorded = pipe.record(evil * 30, negative=evil, steps=1)
    assert recorded.result.notes  # too long for CLIP, and the note quotes it
    seen = outline(recorded.save(tmp_path / "page.html")[0].read_text(encoding="utf-8"))
    assert all(attributes["src"].startswith("data:image/") for attributes in seen.of("img"))
    assert evil.strip() in seen.text


def test_nothing_comes_from_outside(page, outline) -> None:
    seen = outline(page)
    addresses = [
        value
        for _, attributes in seen.elements
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)
    assert not re.search(r"url\(|@import|https?://", page)
    policy = next(one for one in seen.of("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_every_section_is_there_for_every_picture(page, outline) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    expected = [
        "The clean picture that each step heads for",
        "Words",
        "Noise levels",
        "Velocity and guidance",
    ]
    expected += ["Inside the transformer", "Tokens", "Settings"]
    assert headings == 2 * expected
    seen = outline(page)
    assert len(seen.of("article")) == 2
    for name in ("CLIP-L", "CLIP-G", "T5", "circle</w>", "σ 1.000"):
        assert name in seen.text, name


def test_pictures_are_whole(page, recorded, outline) -> None:
    pictures = [one for one in outline(page).of("img") if one.get("class") == "picture"]
    for attributes, picture in zip(pictures, recorded.result.images, strict=True):
        data = b64decode(attributes["src"].partition("base64,")[2])
        assert Image.open(BytesIO(data)).tobytes() == picture.tobytes()


def test_without_attention_the_words_are_left_out(recorded) -> None:
    page = as_page(replace(recorded, attention=None))
    assert "<h2>Words</h2>" not in page
    assert "<h2>Tokens</h2>" in page


def test_the_empty_prompt_has_no_words(pipe, tmp_path) -> None:
    recorded = pipe.record("", steps=1)
    page = recorded.save(tmp_path / "page.html")[0].read_text(encoding="utf-8")
    assert "(the empty prompt)" in page
    assert "<h2>Words</h2>" not in page


def test_files_are_kept_unless_told(recorded, tmp_path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        recorded.save(path)
    with pytest.raises(SettingsError, match=r"\.html"):
        recorded.save(tmp_path / "page.txt")
    assert path.read_text() == "mine"
    assert recorded.save(path, overwrite=True)[0].read_text(encoding="utf-8").startswith("<!doctype html>")


def test_command(model_folder, tmp_path, capsys) -> None:
    picture, page = tmp_path / "a.png", tmp_path / "a.html"
    command = ["generate", "a <b>red</b> circle", "-m", str(model_folder), "--steps", "1", "-o", str(picture)]
    assert main([*command, "--report", str(page)]) == 0
    assert capsys.readouterr().out.split() == [str(picture), str(page)]
    assert "&lt;b&gt;red&lt;/b&gt;" in page.read_text(encoding="utf-8")
    picture.unlink()
    assert main([*command, "--report", str(page)]) == 2  # the page exists: refused before anything is drawn
    assert not picture.exists()
