"""`sd35 train`: the options reach the training, which has tests of its own."""

from pathlib import Path


def test_options_reach_the_training(sd35, monkeypatch, tmp_path) -> None:
    from sd35.tiny import recipe

    calls = []
    monkeypatch.setattr(recipe, "train", lambda output, **options: calls.append((output, options)))
    given = ("--seed", "3", "--minutes", "2.5", "--resume", "tiny", "--autoencoder", "0.4")
    assert sd35("train", "tiny", "--output", tmp_path, *given) == (0, "", "")
    options = {"minutes": 2.5, "seed": 3, "device": "cpu", "resume": Path("tiny"), "autoencoder": 0.4}
    assert calls == [(Path(tmp_path), options)]


def test_only_the_embedded_model_is_trained_and_only_into_a_named_folder(sd35) -> None:
    assert sd35("train", "large", "--output", "x")[0] == 2
    assert sd35("train", "tiny")[0] == 2


def test_the_embedded_models_training_is_called_by_its_name(sd35, tmp_path) -> None:
    given = ("train", "tiny", "--output", tmp_path, "--minutes", "1", "--device", "abacus")
    status, out, err = sd35(*given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("sd35 train tiny: error: there is no kind of device 'abacus'")


def test_a_lora_is_trained_from_the_command_line(sd35, model_folder, tmp_path) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (32, 32), "red").save(pictures / "red.png")
    run = ("train", "lora", "-m", model_folder, "--data", pictures, "-o", tmp_path / "run", "--steps", "2")
    status, out, err = sd35(*run)
    assert (status, out) == (2, "")
    assert "red.png has no caption" in err
    status, out, err = sd35(*run, "--caption", "red", "--validate-every", "1", "--sample-prompt", "red")
    assert (status, out) == (0, f"{tmp_path / 'run' / 'lora.safetensors'}\n"), err
    assert (tmp_path / "run" / "samples" / "000002-0.png").exists()
    assert "validation 0.5" in (tmp_path / "run" / "log.csv").read_text()
    assert sd35(*run, "--caption", "red")[0] == 2  # the folder holds a run


def test_help_of_a_way_tells_its_settings(sd35) -> None:
    _, out, _ = sd35("train", "lora", "--help")
    assert "--rank" in out
    assert "--schedule-shift" in out
    assert "--guidance-scale" not in out
