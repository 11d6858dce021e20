"""`sd35 train`: the options reach the training, which has tests of its own."""

from pathlib import Path


def test_options_reach_the_training(sd35, monkeypatch, tmp_path) -> None:
    from sd35.tiny import recipe

    calls = []
    monkeypatch.setattr(recipe, "train", lambda output, **options: calls.append((output, options)))
    assert sd35("train", "tiny", "--output", tmp_path, "--seed", "3", "--minutes", "2.5") == (0, "", "")
    assert calls == [(Path(tmp_path), {"minutes": 2.5, "seed": 3, "device": "cpu", "resume": None})]


def test_only_the_embedded_model_is_trained_and_only_into_a_named_folder(sd35) -> None:
    assert sd35("train", "large", "--output", "x")[0] == 2
    assert sd35("train", "tiny")[0] == 2
