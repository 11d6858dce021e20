"""sd35 watermark: the two halves, and the verdict in the exit status."""

from sd35 import State


def test_a_mark_is_put_and_found(sd35, model_folder, pipe, tmp_path) -> None:
    picture, latents = tmp_path / "a.png", tmp_path / "a.safetensors"
    size = ("--steps", "4", "--width", "128", "--height", "128")
    model = ("-m", model_folder)
    put = ("watermark", "put", "a red circle", "--key", "7", *size, *model, "-o", picture)
    status, out, _ = sd35(*put, "--save-latents", latents)
    assert (status, out) == (0, f"{picture}\n{latents}\n")
    from_python = pipe.watermark("a red circle", key=7, steps=4, width=128, height=128)
    assert (State.load(latents).latents == from_python.latents).all()
    status, out, _ = sd35("watermark", "find", latents, "--key", "7")
    assert (status, "tree_rings, key 7: found; 0.1% of 1000 keys" in out) == (0, True)
    status, out, _ = sd35("watermark", "find", latents, "--key", "8")
    assert (status, "not found" in out) == (1, True)
    assert sd35(*put)[0] == 2  # the picture exists


def test_a_key_is_needed_and_looked_for_as_given(sd35, tmp_path) -> None:
    status, _, err = sd35("watermark", "put", "a", "-o", tmp_path / "a.png")
    assert (status, "--key" in err) == (2, True)
    status, out, err = sd35("watermark", "put", "a", "--key", "-1", "-o", tmp_path / "a.png")
    assert (status, out, err.count("\n"), "key must be a whole number" in err) == (2, "", 1, True)
