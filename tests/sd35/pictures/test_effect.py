"""Every setting of pictures changes what comes out, from Python and from the command line alike."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmdit import ControlNet, ControlNetConfig
from sd35 import Control, SettingsError, State, read_settings
from sd35.cli import main
from sd35.fields import table
from sd35.inputs import PictureSettings

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A photograph, masks, and a ControlNet for the random model."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = torch.randint(0, 256, (SIDE, SIDE + 8, 3), generator=torch.Generator().manual_seed(0))
    photo = Image.fromarray(noise.to(torch.uint8).numpy()).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    photo.save(folder / "photo.png")
    photo.resize((SIDE + 16, SIDE)).save(folder / "wide.png")
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (0, 1, 17, 26))
    mask.save(folder / "mask.png")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = ControlNet(ControlNetConfig(dim=64, depth=1, num_heads=1, pooled_dim=24))
    save_file(net.state_dict(), folder / "control.safetensors")
    return folder


def given_of(folder, name: str):
    """What a setting is given beside, and its value."""
    photo, mask = folder / "photo.png", folder / "mask.png"
    part = {"image": photo, "mask": mask}
    steered = {"control": (folder / "control.safetensors", photo)}
    return {
        "image": ({"strength": 0.5}, photo),
        "strength": ({"image": photo}, 0.5),
        "start_rule": ({"image": photo, "strength": 0.8, "steps": 10}, "diffusers"),
        "fit": ({"image": folder / "wide.png", "strength": 0.5, "width": SIDE, "height": SIDE}, "crop"),
        "mask": ({"image": photo}, mask),
        "mask_white": (part, "kept"),
        "mask_rule": (part, "any"),
        "paste": (part, True),
        "feather": ({**part, "paste": True}, 2),
        "control": ({}, steered["control"]),
        "control_rule": (steered, "diffusers"),
        "control_uncond": (steered, False),
    }[name]


@pytest.mark.parametrize("name", table(PictureSettings))
def test_each_changes_the_picture(name, folder, pipe) -> None:
    beside, value = given_of(folder, name)
    given = {"steps": 4, **beside, name: value}
    with_it = pipe.generate("a red circle", **given).image
    del given[name]
    alone = {name for name in ("strength", "mask") if name in given and not given.keys() & {"image"}}
    given = {one: value for one, value in given.items() if one not in alone}
    if name == "fit":
        with pytest.raises(SettingsError, match="say how it is brought there, by --fit"):
            pipe.generate("a red circle", **given)
        given["fit"] = "pad"
    if name in ("strength", "mask"):
        with pytest.raises(SettingsError, match="the image has no effect"):
            pipe.generate("a red circle", **given)
        given = {"steps": 4}
    assert not torch.equal(with_it, pipe.generate("a red circle", **given).image)


def test_the_command_line_draws_the_same_and_again_from_the_picture(
    folder, model_folder, pipe, capsys
) -> None:
    """With image, mask, paste and a ControlNet; and what is gone or changed is named by its hash."""
    photo, mask, net = (folder / name for name in ("photo.png", "mask.png", "control.safetensors"))
    words = [*("-m", str(model_folder)), *("--steps", "4"), *("--image", str(photo)), *("--strength", "0.7")]
    words += [*("--mask", str(mask)), "--paste", *("--feather", "2")]
    words += [*("--control", str(net)), *("--control-image", str(photo)), *("--control-kind", "blur")]
    words += [*("--control-scale", "0.8"), *("--control-end", "0.9"), "--no-control-uncond"]
    assert main(["generate", "a red circle", *words, "-o", str(folder / "a.png")]) == 0
    control = Control(net, Image.open(photo), kind="blur", scale=0.8, end=0.9)
    same = pipe.generate(
        "a red circle",
        steps=4,
        image=Image.open(photo),
        strength=0.7,
        mask=Image.open(mask),
        paste=True,
        feather=2,
        control=[control],
        control_uncond=False,
    )
    drawn = Image.open(folder / "a.png")
    assert drawn.tobytes() == same.images[0].tobytes()

    kept = [(x, y) for x in range(SIDE) for y in range(SIDE) if not (x < 17 and 1 <= y < 26)]
    assert all(drawn.getpixel(at) == Image.open(photo).getpixel(at) for at in kept)
    assert drawn.getpixel((8, 12)) != Image.open(photo).getpixel((8, 12))

    again = ["generate", "--from-image", str(folder / "a.png"), "-o"]
    assert main([*again, str(folder / "b.png")]) == 0
    assert (folder / "a.png").read_bytes() == (folder / "b.png").read_bytes()
    (settings,) = (read_settings(folder / "a.png"),)
    assert settings.control is not None
    assert settings.control[0].digest

    with pytest.raises(SettingsError, match=r"given in memory .*SHA-256"):
        pipe.run(same.settings)
    stored = photo.read_bytes()
    Image.open(folder / "wide.png").crop((0, 0, SIDE, SIDE)).save(photo)
    capsys.readouterr()
    assert main([*again, str(folder / "c.png")]) == 2
    assert "holds another picture now" in capsys.readouterr().err
    photo.unlink()
    assert main([*again, str(folder / "c.png")]) == 2
    assert "is not there" in capsys.readouterr().err
    photo.write_bytes(stored)


def test_a_control_generation_inverts_with_its_control(folder, pipe) -> None:
    """From the picture's own settings; without it, the noise is another one."""
    control = Control(folder / "control.safetensors", folder / "photo.png", scale=2.0)
    drawn = pipe.generate("a red circle", steps=3, guidance_scale=1.5, control=control)
    found = pipe.invert(drawn.state(), accuracy=1e-6)
    assert found.losses["noise"].total_psnr > 60
    assert found.notes == ()
    without = pipe.invert(drawn.state(), control="none", accuracy=1e-6)
    assert without.losses["noise"].total_psnr < 60
    assert any(note.startswith("control: not what the picture was drawn with") for note in without.notes)


def test_the_command_line_inverts_with_the_control_of_the_picture(folder, model_folder, pipe, capsys) -> None:
    control = Control(folder / "control.safetensors", folder / "photo.png")
    (path,) = pipe.generate("a red circle", steps=2, control=control).save(folder / "steered.png")
    words = ["invert", str(path), "-m", str(model_folder), "--method", "naive", "--no-measure"]
    assert main([*words, "-o", str(folder / "with.safetensors")]) == 0
    assert "control" not in capsys.readouterr().err
    assert main([*words, "--control", "none", "-o", str(folder / "without.safetensors")]) == 0
    assert "control: not what the picture was drawn with" in capsys.readouterr().err
    found = [State.load(folder / f"{name}.safetensors").noise for name in ("with", "without")]
    assert not torch.equal(*found)


def test_each_of_a_batch_has_its_own_pictures(folder, pipe) -> None:
    """And is, to the last bit, what it would be alone."""
    photos = [Image.open(folder / "photo.png"), Image.open(folder / "photo.png").rotate(90)]
    control = Control(folder / "control.safetensors", photos)
    given = {"steps": 2, "strength": 0.5, "seed": 3}
    both = pipe.generate(["a red circle"] * 2, image=photos, control=control, batch_size=1, **given)
    assert both.settings.of(1).image == (both.settings.image[1],)
    control = Control(folder / "control.safetensors", photos[1])
    alone = pipe.generate("a red circle", image=photos[1], control=control, **{**given, "seed": 4})
    assert torch.equal(both.image[1:], alone.image)
    with pytest.raises(SettingsError, match="there are 2 of image for 3 pictures"):
        pipe.generate(["a red circle"] * 3, image=photos, **given)


def test_a_picture_from_elsewhere_is_brought_to_a_size_that_can_be_inverted(folder, pipe) -> None:
    odd = folder / "odd.png"
    Image.open(folder / "wide.png").resize((45, 30)).save(odd)
    with pytest.raises(SettingsError, match="--fit crop, pad or stretch"):
        pipe.invert(odd, "a red circle", steps=2)
    found = pipe.invert(odd, "a red circle", steps=2, method="naive", measure=False, fit="crop")
    assert found.noise.shape[2:] == (4, 6)
    assert any("brought from 45 x 30 to 48 x 32 (crop)" in note for note in found.notes)
    edited = pipe.edit(
        odd, "a blue square", "a red circle", steps=2, fit="stretch", width=32, height=32, strength=0.5
    )
    assert edited.image.shape[2:] == (32, 32)
    with pytest.raises(SettingsError, match="told by the picture itself"):
        pipe.invert(folder / "photo.png", "a red circle", width=48)


def test_what_was_drawn_from_a_picture_is_inverted_to_noise_alone_and_that_is_said(folder, pipe) -> None:
    drawn = pipe.generate("a red circle", image=folder / "photo.png", strength=0.5, steps=4)
    found = pipe.invert(drawn.state(), method="naive", measure=False)
    assert any("drawn from another picture" in note for note in found.notes)
    assert found.settings.image is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mask": torch.zeros(SIDE, SIDE, dtype=torch.bool)}, "redraws nothing: its white is redrawn"),
        ({"mask": torch.ones(SIDE, SIDE, dtype=torch.uint8)}, "booleans or floats in"),
        ({"mask": torch.ones(SIDE, 16)}, "they must have one size"),
        ({"mask": torch.ones(SIDE, SIDE), "solver": "sde"}, "draws noise at every step"),
        ({"strength": 0.3, "guidance": {"zero_steps": 1}}, "in a run that begins with them"),
        ({"strength": 0.5, "paste": True}, "paste has no effect here, only with a mask"),
        ({"strength": 0.5, "control_rule": "diffusers"}, "only with a ControlNet"),
        ({"strength": 0.5, "control": ("nowhere.safetensors", "nowhere.png")}, "nowhere.png"),
    ],
)
def test_what_cannot_be_is_refused(given, message, folder, pipe) -> None:
    with pytest.raises((SettingsError, OSError), match=message):
        pipe.generate("a red circle", image=folder / "photo.png", steps=4, **given)


def test_a_seam_that_hides_all_and_a_mask_between_latents_are_refused(folder, pipe) -> None:
    mask = torch.zeros(SIDE, SIDE)
    mask[3:6, 3:6] = 1
    given = {"image": folder / "photo.png", "steps": 2}
    with pytest.raises(SettingsError, match=r"too thin.*--mask-rule any"):
        pipe.generate("a red circle", mask=mask, **given)
    pipe.generate("a red circle", mask=mask, mask_rule="any", **given)
    with pytest.raises(SettingsError, match="choose a smaller feather"):
        pipe.generate("a red circle", mask=mask, mask_rule="any", paste=True, **given)


def test_a_control_net_for_another_model_is_refused_before_weights_are_read(
    folder, model_folder, capsys
) -> None:
    net = ControlNet(ControlNetConfig(dim=128, depth=1, num_heads=2, pooled_dim=24))
    save_file(net.state_dict(), folder / "other.safetensors")
    words = ["generate", "a", "-m", str(model_folder), "--control", str(folder / "other.safetensors")]
    assert main([*words, "-o", str(folder / "d.png")]) == 2
    assert "reads a picture: give it by --control-image" in capsys.readouterr().err
    assert main([*words, "--control-image", str(folder / "photo.png"), "-o", str(folder / "d.png")]) == 2
    assert "width 128, and this one has width 64" in capsys.readouterr().err
    assert main(["generate", "a", "--control-scale", "2"]) == 2
    assert "no effect without --control" in capsys.readouterr().err


def test_a_transformer_made_for_inpainting_is_told_by_its_shape(folder, model_folder, capsys) -> None:
    """From the file on; without a mask it is refused before weights are read."""
    tensors = load_file(model_folder / "sd3.5_random.safetensors")
    key = "model.diffusion_model.x_embedder.proj.weight"
    generator = torch.Generator().manual_seed(0)
    tensors[key] = 0.1 * torch.randn(*tensors[key].shape[:1], 33, 2, 2, generator=generator).half()
    save_file(tensors, folder / "inpaint.safetensors", {"modelspec.resolution": "32x32"})
    words = ["-m", str(folder / "inpaint.safetensors"), "--text-encoders", str(model_folder)]
    words = ["generate", "a star", *words, "--steps", "2", "--overwrite", "-o", str(folder / "e.png")]
    assert main(words) == 2
    assert "made for inpainting: give an image and a mask" in capsys.readouterr().err
    words += ["--image", str(folder / "photo.png"), "--mask", str(folder / "mask.png")]
    assert main(words) == 0
    drawn = Image.open(folder / "e.png").tobytes()
    assert main([*words, "--mask-white", "kept"]) == 0
    assert Image.open(folder / "e.png").tobytes() != drawn


def test_edges_need_opencv_or_are_given(folder, pipe) -> None:
    """Where it is not installed, the message says what to do."""
    control = Control(folder / "control.safetensors", folder / "photo.png", kind="canny")
    try:
        import cv2  # noqa: F401
    except ImportError:
        with pytest.raises(SettingsError, match="opencv-python-headless"):
            pipe.generate("a", control=control, steps=2)
    else:
        with pytest.raises(SettingsError, match="reads blur, and the control kind is canny"):
            pipe.generate("a", control=control, steps=2)
