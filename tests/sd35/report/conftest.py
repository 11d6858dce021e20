"""A generation that was recorded, and the same one unwatched."""

from html.parser import HTMLParser

import pytest

from sd35 import Pipeline, Recording, Result

PROMPT = 'a <script>alert("red")</script> circle & a blue square'
SETTINGS = {"steps": 3, "guidance_scale": 2.0, "images_per_prompt": 2, "seed": 5}


@pytest.fixture(scope="session")
def unwatched(pipe: Pipeline) -> Result:
    return pipe.generate(PROMPT, **SETTINGS)


@pytest.fixture(scope="session")
def recorded(pipe: Pipeline) -> Recording:
    return pipe.record(PROMPT, **SETTINGS)


class Outline(HTMLParser):
    """The elements of a page with their attributes, and its text; every element is closed where it should."""

    VOID = frozenset({"img", "meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def outline():
    """`outline(page)`: what is in a page of HTML."""
    return Outline
