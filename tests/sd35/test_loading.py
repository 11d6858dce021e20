"""From a source to a pipeline: what is checked first, the dtypes of parts, encoders that are left out."""

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import flow
import weights.build
from sd35 import SettingsError, load, read_settings
from sd35.cli import main
from sd35.device import fast_dtype
from sd35.found import find, read
from sd35.tasks.quantise import made_up_states, quantise
from textenc import Encoding
from weights import FitError, MissingComponent, SourceError, load_textenc, resolve
from weights.packed.linear import PackedLinear

STEPS = 2


@pytest.fixture
def nothing_is_read(monkeypatch) -> None:
    """A weight that is read fails the test."""

    def fail(*_arguments) -> None:
        pytest.fail("weights were read")

    monkeypatch.setattr("weights.load.load_into", fail)


def without(source, name: str, path):
    """A copy of the tensors of one file, without one of them."""
    tensors = load_file(source)
    del tensors[name]
    save_file(tensors, path)
    return path


@pytest.mark.usefixtures("nothing_is_read")
def test_a_part_that_does_not_fit_is_found_before_weights_are_read(model_folder, tmp_path) -> None:
    whole = model_folder / "sd3.5_random.safetensors"
    for name in ("first_stage_model.decoder.conv_in.bias", "model.diffusion_model.final_layer.linear.bias"):
        path = without(whole, name, tmp_path / "part.safetensors")
        with pytest.raises(FitError, match=name):
            load(path, text_encoders=model_folder)
    vae = without(whole, "first_stage_model.decoder.conv_in.bias", tmp_path / "vae.safetensors")
    with pytest.raises(FitError, match=r"decoder\.conv_in\.bias"):
        load(model_folder, vae=vae)
    with pytest.raises(SourceError, match="there is no file or folder"):
        load(model_folder, vae=tmp_path / "absent.safetensors")


@pytest.mark.usefixtures("nothing_is_read")
@pytest.mark.parametrize("one_by_one", [False, True])
def test_every_text_encoder_is_checked_before_one_is_read(model_folder, tmp_path, one_by_one) -> None:
    own, name = model_folder / "text_encoders" / "t5xxl_fp16.safetensors", "encoder.block.0.layer.0"
    t5 = without(own, f"{name}.layer_norm.weight", tmp_path / "t5.safetensors")
    with pytest.raises(FitError, match=name):
        load(model_folder, t5=t5, one_by_one=one_by_one)


def test_each_part_may_have_its_own_dtype(model_folder) -> None:
    dtypes = {"mmdit": torch.bfloat16, "t5": torch.float16}
    others = dict.fromkeys(("vae", "clip_l", "clip_g"), torch.float32)
    assert load(model_folder, dtype=dtypes).dtypes == dtypes | others
    assert load(model_folder, dtype=dtypes, one_by_one=True).dtypes == dtypes | others
    for name in ("bfloat16", {"t5": "bfloat16"}):
        with pytest.raises(SettingsError, match=r"dtype must be one of torch, such as .*; got 'bfloat16'"):
            load(model_folder, dtype=name)
    with pytest.raises(SettingsError, match=r"dtype is of the parts mmdit, .*; got transformer"):
        load(model_folder, dtype={"transformer": torch.float32})
    encoders = load_textenc(model_folder, dtype={"clip_l": torch.float32})
    kept = [next(one.parameters()).dtype for one in (encoders.clip_l, encoders.clip_g, encoders.t5)]
    assert kept == [torch.float32, torch.float16, torch.float16]  # None keeps what a file holds


def kept(encoding: Encoding, path) -> Encoding:
    """Written to a file, and read from it."""
    tensors, metadata = encoding.to_tensors()
    save_file(tensors, path, metadata)
    with safe_open(path, framework="pt") as file:
        return Encoding.from_tensors({name: file.get_tensor(name) for name in tensors}, file.metadata())


def test_prompts_that_were_encoded_before_need_no_text_encoders(pipe, model_folder, tmp_path) -> None:
    prompt = kept(pipe.encode_prompt("a red circle"), tmp_path / "prompt.safetensors")
    negative = kept(pipe.encode_prompt(""), tmp_path / "negative.safetensors")
    drawn = pipe.generate("a red circle", steps=STEPS)
    alone = load(model_folder, text=False)
    with pytest.raises(SettingsError, match=r"give pipe\.velocity two Encodings"):
        alone.generate("a red circle", steps=STEPS)
    velocity = alone.velocity(prompt, negative, guidance_scale=4.5)
    latents = flow.solve(velocity, drawn.noise.to(alone.device), flow.sigmas(STEPS))
    assert torch.equal(alone.decode(latents), drawn.image)


def test_each_source_is_looked_into_once_and_each_part_built_once(
    model_folder, monkeypatch, tmp_path
) -> None:
    built, resolved = [], []
    build, resolve = weights.build.build_component, weights.resolve

    def counted(component):
        built.append(component.part)
        return build(component)

    def noted(source, parts=None):
        resolved.append(source)
        return resolve(source, parts)

    for place in ("weights.build.build_component", "weights.load.build_component"):
        monkeypatch.setattr(place, counted)
    for place in ("sd35.found.resolve", "weights.load.resolve"):
        monkeypatch.setattr(place, noted)
    command = ["generate", "a", "-m", str(model_folder), "--steps", "1", "-o", str(tmp_path / "a.png")]
    assert main(command) == 0
    assert sorted(built) == ["clip_g", "clip_l", "mmdit", "t5", "vae"]
    assert resolved == [str(model_folder)]


def test_what_was_found_can_be_read_more_than_once(model_folder) -> None:
    found = find(model_folder)
    first, second = read(found), read(found, dtype=torch.bfloat16)
    assert first.mmdit is not second.mmdit
    assert (first.dtype, second.dtype) == (torch.float32, torch.bfloat16)


@pytest.fixture
def one_file(model_folder, tmp_path):
    """A checkpoint with everything but tokenizers, as `..._incl_clips_t5xxl.safetensors` is."""
    tensors = load_file(model_folder / "sd3.5_random.safetensors")
    for part, file in {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5xxl_fp16"}.items():
        own = load_file(model_folder / "text_encoders" / f"{file}.safetensors")
        tensors |= {f"text_encoders.{part}.transformer.{name}": tensor for name, tensor in own.items()}
    save_file(tensors, tmp_path / "whole.safetensors", {"modelspec.resolution": "32x32"})
    return tmp_path / "whole.safetensors"


@pytest.fixture
def trainers_folder(model_folder, tmp_path):
    """NAME.safetensors, NAME_clip_l.safetensors, ... side by side."""
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "mine.safetensors").symlink_to(model_folder / "sd3.5_random.safetensors")
    for part, file in {"clip_l": "clip_l", "clip_g": "clip_g", "t5xxl": "t5xxl_fp16"}.items():
        (folder / f"mine_{part}.safetensors").symlink_to(
            model_folder / "text_encoders" / f"{file}.safetensors"
        )
    return folder


@pytest.mark.parametrize("kind", ["one_file", "trainers_folder"])
def test_encoders_without_tokenizers_draw_with_another_source_of_them(
    request, model_folder, tmp_path, pipe, kind, capsys
) -> None:
    source = request.getfixturevalue(kind)
    expected = pipe.generate("a red circle", steps=1)
    with pytest.raises(MissingComponent, match=r"tokenizers= in Python, --tokenizers on the command line"):
        load(source)
    drawn = load(source, tokenizers=model_folder).generate("a red circle", steps=1)
    assert torch.equal(drawn.image, expected.image)
    assert drawn.settings.made_with["tokenizers_source"] == str(model_folder)
    command = ["generate", "a red circle", "-m", str(source), "--steps", "1", "-o", str(tmp_path / "a.png")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "vocab.json and merges.txt from openai/clip-vit-large-patch14" in error
    assert main([*command, "--tokenizers", str(model_folder)]) == 0


def test_each_encoder_may_come_from_a_source_of_its_own(model_folder, pipe, tmp_path) -> None:
    file, encoders = model_folder / "sd3.5_random.safetensors", model_folder / "text_encoders"
    own = {"clip_l": encoders / "clip_l.safetensors", "clip_g": encoders / "clip_g.safetensors"}
    own |= {"t5": encoders / "t5xxl_fp16.safetensors", "tokenizers": model_folder}
    with pytest.raises(MissingComponent, match=r"clip_g= in Python, --clip-g on the command line"):
        load(file, **{name: place for name, place in own.items() if name != "clip_g"})
    made = load(file, **own)
    drawn = made.generate("a red circle", steps=1)
    assert torch.equal(drawn.image, pipe.generate("a red circle", steps=1).image)
    assert made.sources == {name: str(place) for name, place in own.items()}
    options = [word for name, place in own.items() for word in (f"--{name.replace('_', '-')}", str(place))]
    command = ["generate", "a", "-m", str(file), "--steps", "1", "-o", str(tmp_path / "a.png")]
    assert main([*command, *options]) == 0
    short = load(file, **(own | {"clip_g": False, "t5": False}))
    assert short.encode_prompt("a").context.shape == pipe.encode_prompt("a").context.shape
    assert short.encode_prompt("a").pooled.shape == pipe.encode_prompt("a").pooled.shape


def test_a_model_is_recorded_by_a_name_that_is_good_in_every_folder(model_folder, monkeypatch) -> None:
    monkeypatch.chdir(model_folder.parent)
    assert load(model_folder.name, text=False).model == str(model_folder)
    monkeypatch.chdir(model_folder)
    assert find(".", text=False).model == str(model_folder)
    assert find("tiny", text=False).model == "tiny"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_no_loaded_model(model_folder, pipe, dtype) -> None:
    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        model = load(model_folder)
        encoding = model.encode_prompt("a red circle")
    finally:
        torch.set_default_dtype(usual)
    assert model.dtypes == pipe.dtypes
    assert torch.equal(encoding.context, pipe.encode_prompt("a red circle").context)


def test_load_stays_a_function_whatever_is_imported_first(model_folder) -> None:
    import sd35.found
    import sd35.loading

    assert sd35.load(model_folder, text=False).text is None
    assert callable(sd35.loading.load_found)


def test_a_hash_of_every_value_is_recorded_on_request_and_tells_what_samples_miss(
    model_folder, tmp_path, capsys
) -> None:
    folder, picture = tmp_path / "model", tmp_path / "a.png"
    shutil.copytree(model_folder, folder)
    command = ["generate", "a", "-m", str(folder), "--steps", "1", "-o", str(picture)]
    assert main([*command, "--hash-values"]) == 0
    sampled, exact = load(folder), load(folder, hash_values=True)
    assert read_settings(picture).made_with["weights"] == exact.weights != sampled.weights
    file = folder / "sd3.5_random.safetensors"
    with file.open("r+b") as opened:  # one bit of one weight, behind the last page that is looked at
        opened.seek(os.stat(file).st_size - 2)
        (last,) = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([last ^ 1]))
    assert load(folder).weights == sampled.weights
    again = ["generate", "--from-image", str(picture), "-o", str(tmp_path / "b.png")]
    assert main(again) == 0
    assert "are not those that this picture was drawn with" in capsys.readouterr().err


def test_a_shift_that_the_models_own_scheduler_names_is_taken_and_told(model_folder, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"shift": 6.0}))
    pipe = load(folder)
    result = pipe.generate("a", steps=1)
    assert (result.settings.schedule_shift, "schedule shift 6" in result.notes[0]) == (6, True)
    given = pipe.generate("a", steps=1, schedule_shift=3.0)
    assert (given.settings.schedule_shift, given.notes) == (3, ())
    assert main(["generate", "a", "-m", str(folder), "--steps", "1", "-o", str(tmp_path / "a.png")]) == 0
    assert read_settings(tmp_path / "a.png").schedule_shift == 6


@pytest.mark.parametrize("one_by_one", [False, True])
def test_weights_in_few_bits_become_numbers_when_that_is_asked_for(
    model_folder, tmp_path, one_by_one
) -> None:
    component = resolve(model_folder, ["mmdit"]).component("mmdit")
    file = tmp_path / "few.safetensors"
    model = load(model_folder, text=False).mmdit
    quantise(component, model, [next(made_up_states(model, side=4))], file)
    rest = {"text_encoders": model_folder, "vae": model_folder, "one_by_one": one_by_one}
    few, whole = load(file, **rest), load(file, **rest, unpack=True)
    assert any(isinstance(one, PackedLinear) for one in few.mmdit.modules())
    assert not any(isinstance(one, PackedLinear) for one in whole.mmdit.modules())
    settings = {"steps": 1, "width": 32, "height": 32}
    assert torch.equal(few.generate("a", **settings).image, whole.generate("a", **settings).image)
    command = ["generate", "a", "-m", str(file), "--text-encoders", str(model_folder), "--unpack"]
    command += ["--vae", str(model_folder), "--steps", "1", "--width", "32", "--height", "32"]
    assert main([*command, "-o", str(tmp_path / "a.png")]) == 0


def test_what_holds_tensors_prints_in_a_line(pipe) -> None:
    result = pipe.generate("a red circle", steps=1)
    values = [pipe, result, result.state(), pipe.steps(result.settings), pipe.velocity("a red circle")]
    for value in [*values, pipe.encode_prompt("a red circle")]:
        assert len(repr(value)) < 200
        assert value is pipe or "a red circle" in repr(value)


@pytest.mark.parametrize("name", ["nothing", "model", "made_with"])
def test_what_is_no_setting_is_refused_with_those_there_are(pipe, name) -> None:
    with pytest.raises(SettingsError, match=rf"there is no setting {name}; there are .*prompts, neg"):
        pipe.generate("a", **{name: "x"})


def test_the_settings_of_each_task_are_named(pipe) -> None:
    result = pipe.generate("a", steps=1)
    with pytest.raises(SettingsError, match=r"no setting nothing; there are precision, method, .* steps, "):
        pipe.invert(result.latents, "a", nothing=1)
    with pytest.raises(SettingsError, match=r"no setting nothing; there are precision, method, .* steps, "):
        pipe.edit(result.latents, "b", "a", nothing=1)


@pytest.mark.parametrize("fast", [torch.bfloat16, torch.float32])
def test_a_large_model_takes_bfloat16_on_a_cpu_that_multiplies_it_fast(
    model_folder, monkeypatch, fast
) -> None:
    """Never a small one; and never what was asked for otherwise."""
    monkeypatch.setattr("sd35.loading.fast_dtype", lambda: fast)
    assert load(model_folder).dtype == torch.float32
    monkeypatch.setattr("sd35.loading.LARGE", 0)
    large = load(model_folder)
    assert set(large.dtypes.values()) == {fast}
    assert any("computed in bfloat16" in note for note in large.notes) == (fast == torch.bfloat16)
    assert load(model_folder, dtype=torch.float32).dtype == torch.float32


def test_the_probe_is_made_once() -> None:
    assert fast_dtype() is fast_dtype()
    assert fast_dtype() in (torch.float32, torch.bfloat16)
    assert fast_dtype.cache_info().misses == 1
