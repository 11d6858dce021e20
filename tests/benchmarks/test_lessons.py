"""Lessons of the embedded model, shortened to a step: that they run, and that their judges also say no."""

import importlib
import json
from pathlib import Path

import pytest

from sd35.noise import seeded
from sd35.tiny.painting import draw
from vae.image import to_uint8

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def lesson(monkeypatch):
    """A lesson's module by its name, with other constants."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def module(name: str, **constants):
        found = importlib.import_module(f"lessons_{name}")
        for constant, value in constants.items():
            monkeypatch.setattr(found, constant, value)
        return found

    return module


@pytest.fixture
def results(capsys):
    """What was printed, without the name of the lesson."""
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_hexagon_is_told_from_a_circle(lesson, monkeypatch) -> None:
    hexagons = lesson("hexagon")
    shown = hexagons.scenes(6, seed=1)
    assert hexagons.scenes(6, seed=1, but=shown[:1])[0] not in shown[:1]
    prompts = [hexagons.words(scene, number) for number, scene in enumerate(shown)]
    circles = to_uint8(draw(shown, seeded(2))).movedim(1, 3).numpy()
    monkeypatch.setitem(hexagons.outlines.KINDS, "circle", hexagons.hexagon)
    painted = to_uint8(draw(shown, seeded(2))).movedim(1, 3).numpy()
    for prompt, other, circle, one in zip(prompts, prompts[1:] + prompts[:1], circles, painted, strict=True):
        assert hexagons.is_hexagon(one, prompt)
        assert not hexagons.is_hexagon(one, other)
        assert not hexagons.is_hexagon(circle, prompt)


def test_maroon_is_told_from_red(lesson, monkeypatch) -> None:
    colour = lesson("colour")
    shown = colour.scenes(range(20), seed=7)
    tested = colour.scenes(range(20, 36), seed=10, but=shown)
    combinations = [
        {(s.kind, s.size, s.place) for one in group for s in one.shapes} for group in (shown, tested)
    ]
    assert not combinations[0] & combinations[1]
    some = tested[:6]
    prompts = [colour.words(scene, number) for number, scene in enumerate(some)]
    monkeypatch.setitem(colour.judge.SHAPE_COLOURS, "maroon", colour.MAROON)
    red = to_uint8(draw(some, seeded(2))).movedim(1, 3).numpy()
    with colour.recoloured():
        maroon = to_uint8(draw(some, seeded(2))).movedim(1, 3).numpy()
    assert (to_uint8(draw(some, seeded(2))).movedim(1, 3).numpy() == red).all()  # paints as before
    for prompt, other, one, of_red in zip(prompts, prompts[1:] + prompts[:1], maroon, red, strict=True):
        assert colour.is_maroon(one, prompt)
        assert not colour.is_maroon(one, other)
        assert not colour.is_maroon(of_red, prompt)


def test_what_is_rewarded_is_what_the_prompt_says(lesson) -> None:
    reward = lesson("reward")
    scenes = {reward.listed(scene): scene for scene in reward.scenes(8, seed=1, held_out=False)}
    painted, likeness = draw(list(scenes.values()), seeded(2)), reward.Likeness(scenes)
    assert likeness(painted, list(scenes)).min() > 0.5 > likeness(painted.roll(1, 0), list(scenes)).max()


def test_a_list_of_words_claims_what_a_sentence_does(lesson) -> None:
    reward = lesson("reward")
    scene = reward.scenes(1, seed=1, held_out=True)[0]
    shape = scene.shapes[0]
    assert reward.listed(scene) == (
        f"{scene.background} background, {shape.colour} {shape.kind}, {shape.size}, {shape.place}"
    )
    claim = reward.parse(reward.sentence(scene))
    (said,) = claim.shapes
    assert (said.kind, said.colour) == (shape.kind, shape.colour)
    assert (claim.background or "white") == scene.background


@pytest.mark.parametrize(
    ("gained", "lost", "chance"), [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 1 / 16), (1, 6, 1 / 8)]
)
def test_a_gain_by_chance(lesson, gained, lost, chance) -> None:
    """Tosses of a coin: five of one side come in 2 of 32 cases, six or seven of seven in 16 of 128."""
    assert lesson("reward").chance(gained, lost) == chance


def test_a_new_thing_is_taught_both_ways(lesson, results, tmp_path) -> None:
    drawn = {"none": {"steps": 1, "scale": 1.0}}
    lesson("thing", SHOWN=4, WORDINGS=2, TESTED=1, KEPT=1, CLASS=1, DRAWN=drawn)
    lesson("colour").lesson(tmp_path, 1)
    painted, *told = results()
    assert (painted["when"], painted["right"]) == ("painted", 1)
    found = [one for one in told if "right" in one]
    assert [one["when"] for one in found] == ["before", "without prior", "with prior"]
    assert found[0]["right"]["things"] == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2 * 4
    assert len({path.read_text() for path in (tmp_path / "pictures").glob("*.txt")}) > 4
    assert (tmp_path / "with" / "class" / "00000.png").is_file()


def test_a_reflow_is_measured_by_the_end_of_the_models_own_flow(
    lesson, results, tmp_path, monkeypatch
) -> None:
    reflow = lesson("reflow", TESTED=1, CONVERGED=1, FEW=(1,), PROMPTS=1, PAIRS=1, STEPS=1)
    ends, guided = reflow.ends, []

    def noted(*args, scale, interval=None, **options):
        guided.append((scale, interval))
        return ends(*args, scale=scale, **options)

    monkeypatch.setattr(reflow, "ends", noted)
    reflow.lesson(tmp_path, 1)
    assert guided == [(4.5, (0.7, 1.0))] * 3 + [(1.0, None)]  # converged, before, pairs; after
    before, pairs, after = results()
    assert pairs["when"] == "pairs"
    assert before["decibels"].keys() == after["decibels"].keys() == {"1"}
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_reward_is_measured_on_what_it_did_not_see(lesson, results, tmp_path) -> None:
    reward = lesson("reward", MEASURED=1, STEPS=1, GROUPS=1)
    seen, unseen = (reward.scenes(50, seed=30, held_out=one) for one in (False, True))
    assert not set(map(reward.listed, seen)) & set(map(reward.listed, unseen))
    reward.lesson(tmp_path, 1)
    trained, lists, sentences = results()
    assert trained["rounds"] == 1
    assert (lists["prompts"], sentences["prompts"]) == ("lists", "sentences")
    assert (tmp_path / "lora.safetensors").is_file()
