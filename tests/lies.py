"""What a judge must not believe."""

from collections.abc import Iterator
from dataclasses import replace

from sd35.tiny.scenes import BACKGROUNDS, COLOURS, KINDS, PLACES, SIZES, Scene


def lies(scene: Scene) -> Iterator[Scene]:
    """The scene with one thing changed, for each thing that can be told wrong."""
    shape, others = scene.shapes[0], scene.shapes[1:]
    for attribute, values in {"kind": KINDS, "colour": COLOURS, "size": SIZES, "place": PLACES}.items():
        for value in values:
            if value != getattr(shape, attribute):
                yield replace(scene, shapes=(replace(shape, **{attribute: value}), *others))
    for background in BACKGROUNDS:
        if background != scene.background:
            yield replace(scene, background=background)
    for relation in ("left of", "right of", "above", "below"):
        if scene.relation not in (None, relation):
            yield replace(scene, relation=relation)
    yield replace(scene, shapes=(*scene.shapes, shape))
    yield replace(scene, shapes=others)
