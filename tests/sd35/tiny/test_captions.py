from dataclasses import replace

import pytest
import torch

from sd35.tiny.captions import Claim, ShapeClaim, caption, held_out_prompts, open_prompts, parse
from sd35.tiny.scenes import Scene, Shape, is_held_out, random_scene, training_scene, usual_scene


def is_true(claim: Claim, scene: Scene) -> bool:
    """Whether all that is claimed holds, with the shapes in the order of the claim."""
    return (
        len(claim.shapes) == len(scene.shapes)
        and claim.background in (None, scene.background)
        and claim.relation in (None, scene.relation)
        and all(
            said.kind == shape.kind
            and said.colour in (None, shape.colour)
            and said.size in (None, shape.size)
            and said.place in (None, shape.place)
            for said, shape in zip(claim.shapes, scene.shapes, strict=True)
        )
    )


def test_captions_say_nothing_but_the_truth(generator):
    for _ in range(1500):
        scene = random_scene(generator)
        text = caption(scene, generator)
        claim = parse(text)
        assert is_true(claim, scene) or is_true(claim, scene.flipped()), text


def test_captions_vary_and_a_seed_repeats_them(generator):
    scene = random_scene(generator, shapes=2)
    texts, again = (
        [caption(scene, generator) for _ in range(100)]
        for generator in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1))
    )
    assert len(set(texts)) > 50
    assert texts == again


def test_what_is_usual_is_left_out_at_times_and_what_is_not_never(generator):
    usual = Scene((Shape("ring", "orange", "large", "centre"),), "white")
    other = Scene((Shape("ring", "orange", "small", "left"),), "blue")
    for scene, most in ((usual, 0.8), (other, 0.0)):
        claims = [parse(caption(scene, generator)) for _ in range(300)]
        for said in (
            [claim.shapes[0].size for claim in claims],
            [claim.shapes[0].place for claim in claims],
            [claim.background for claim in claims],
        ):
            share = said.count(None) / len(said)
            assert share == 0 if most == 0 else 0.2 < share < most
    colours = [parse(caption(other, generator)).shapes[0].colour for _ in range(300)]
    assert 0.01 < colours.count(None) / len(colours) < 0.2


def test_brief_captions_say_little(generator):
    claims = [parse(caption(usual_scene(generator), generator, brief=True)) for _ in range(500)]
    unsaid = [
        claim.background is None and all((one.size, one.place) == (None, None) for one in claim.shapes)
        for claim in claims
    ]
    assert sum(unsaid) > 0.5 * len(unsaid)


def test_two_of_a_kind_are_called_so(generator):
    shape = Shape("cross", "red", "medium", "left")
    scene = Scene((shape, replace(shape, place="right")), "white", "left of")
    texts = {caption(scene, generator, brief=True) for _ in range(200)}
    assert {"two crosses", "two red crosses", "a picture of two pluses"} <= texts
    for text in texts:
        first, second = parse(text).shapes
        assert first == second
        assert is_true(parse(text), scene)


def test_open_prompts_are_all_different_and_a_seed_repeats_them():
    prompts = open_prompts(100, seed=0)
    assert len(set(prompts)) == 100
    assert prompts == open_prompts(100, seed=0)
    assert {1, 2} == {len(parse(prompt).shapes) for prompt in prompts}


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("circle", Claim((ShapeClaim("circle"),))),
        ("A Red Circle.", Claim((ShapeClaim("circle", "red"),))),
        (
            "a small red circle on the left on a white background",
            Claim((ShapeClaim("circle", "red", "small", "left"),), "white"),
        ),
        (
            "a blue star above a yellow square on a black background",
            Claim((ShapeClaim("star", "blue"), ShapeClaim("square", "yellow")), "black", "above"),
        ),
        (
            "on a gray background, a picture of a medium-sized violet plus in the middle",
            Claim((ShapeClaim("cross", "purple", "medium", "centre"),), "grey"),
        ),
        (
            "a green ring on the left of a big pink disc on orange",
            Claim((ShapeClaim("ring", "green"), ShapeClaim("circle", "pink", "large")), "orange", "left of"),
        ),
        (
            "a star on the right and an orange ring on the left side",
            Claim(
                (ShapeClaim("star", place="right"), ShapeClaim("ring", "orange", place="left")),
                relation="right of",
            ),
        ),
        ("two circles", Claim((ShapeClaim("circle"),) * 2)),
        (
            "a picture of two small blue pluses on a black background",
            Claim((ShapeClaim("cross", "blue", "small"),) * 2, "black"),
        ),
        ("a red ring and a star", Claim((ShapeClaim("ring", "red"), ShapeClaim("star")))),
    ],
)
def test_parse_reads_what_is_claimed(text, claim):
    assert parse(text) == claim


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "lacks its kind"),
        ("a small red", "lacks its kind"),
        ("a black circle on white", "odd colour"),
        ("a red dog", "not understood: 'dog'"),
        ("a red circle and a star and a ring", "it names 3"),
        ("two dogs", "not understood: 'dogs'"),
        ("a red blue circle", "not understood: 'red'"),
        ("a circle left of a ring above a star", "not understood: 'ring above'"),
    ],
)
def test_parse_refuses_what_is_no_caption(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse(text)


@pytest.mark.parametrize("shapes", [1, 2])
def test_held_out_prompts_name_a_combination_that_is_held_out(shapes):
    prompts = held_out_prompts(300, shapes=shapes, seed=0)
    assert len(set(prompts)) == 300
    assert prompts == held_out_prompts(300, shapes=shapes, seed=0)
    assert prompts != held_out_prompts(300, shapes=shapes, seed=1)
    for claim in map(parse, prompts):
        said = tuple(Shape(s.kind, s.colour or "", s.size or "", s.place or "") for s in claim.shapes)
        assert is_held_out(Scene(said, "white", claim.relation)), claim


@pytest.mark.parametrize("shapes", [1, 2])
def test_training_never_meets_a_held_out_prompt(generator, shapes):
    held_out = set(held_out_prompts(300, shapes=shapes, seed=0))
    trained = {caption(training_scene(generator, shapes=shapes), generator) for _ in range(5000)}
    assert not held_out & trained
