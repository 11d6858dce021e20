"""From prompts to pictures, with random weights."""

import copy
from inspect import signature

import pytest
import torch
from PIL import Image

import flow
import sd35
from sd35 import NonFiniteError, Settings, SettingsError
from textenc import Encoding, Prompt
from weights import MissingComponent, SourceError

STEPS = 3


def test_loading_takes_float32_on_a_cpu_and_what_is_asked_for(pipe, model_folder) -> None:
    assert (pipe.dtype, pipe.device.type) == (torch.float32, "cpu")
    assert (pipe.model, pipe.size) == (str(model_folder), (32, 32))
    half = sd35.load(model_folder, dtype=torch.bfloat16, t5=False)
    assert half.dtype == torch.bfloat16
    assert half.text is not None
    assert half.text.t5 is None
    assert half.generate("a", steps=1).image.isfinite().all()


def test_parts_may_come_from_elsewhere_or_not_at_all(pipe, model_folder) -> None:
    file = model_folder / "sd3.5_random.safetensors"
    with pytest.raises(MissingComponent, match="text encoder CLIP-L"):
        sd35.load(file)
    with pytest.raises(SourceError):
        sd35.load(model_folder / "nothing.safetensors")
    alone = sd35.load(file, text=False, vae=model_folder)
    with pytest.raises(SettingsError, match="no text encoders"):
        alone.generate("a", steps=1)
    x, sigma = torch.zeros(1, 16, 4, 4), torch.ones(1)
    encoded = pipe.encode_prompt(["a", ""])
    velocity = alone.velocity(encoded.select(0), encoded.select(1))
    assert torch.allclose(velocity(x, sigma), pipe.velocity("a")(x, sigma), atol=1e-5)


def test_encoders_may_be_loaded_one_by_one(pipe, model_folder) -> None:
    frugal = sd35.load(model_folder, one_by_one=True)
    prompts = ["a", "a much longer prompt"]
    assert torch.equal(frugal.generate(prompts, steps=1).image, pipe.generate(prompts, steps=1).image)


def test_an_image_of_a_batch_is_that_image_alone(pipe) -> None:
    batch = pipe.generate(["a red circle", "a star"], images_per_prompt=2, seed=3, steps=STEPS)
    assert batch.image.shape == (4, 3, 32, 32)
    assert batch.settings.images == len(batch.images) == 4
    for index in range(4):
        one = pipe.run(batch.settings.of(index))
        assert torch.equal(one.noise[0], batch.noise[index])
        assert torch.equal(one.latents[0], batch.latents[index])
        assert torch.equal(one.image[0], batch.image[index])
    assert not torch.equal(batch.image[0], batch.image[1])


def test_a_batch_that_runs_together_differs_by_rounding(pipe) -> None:
    arguments = {"images_per_prompt": 4, "steps": STEPS}
    apart, together = (pipe.generate("a", batch_size=size, **arguments) for size in (1, 4))
    assert torch.equal(apart.noise, together.noise)
    torch.testing.assert_close(together.image, apart.image, rtol=0, atol=1e-4)


def test_it_is_flow_over_its_parts(pipe) -> None:
    result = pipe.generate("a red circle", negative="b", seed=9, steps=STEPS, guidance_scale=2.0)
    latents = flow.solve(
        pipe.velocity("a red circle", "b", 2.0), result.noise, flow.sigmas(STEPS), solver="euler"
    )
    assert torch.equal(latents, result.latents)
    assert torch.equal(pipe.decode(latents), result.image)


@pytest.mark.parametrize("solver", sorted(flow.SOLVERS))
def test_every_solver_draws(pipe, solver) -> None:
    options = {"rtol": 0.3} if solver == "dopri5" else {}
    settings = Settings(
        prompts=(Prompt("a"),), steps=STEPS, solver=solver, solver_options=options, guidance_scale=1.5
    )
    result = pipe.run(settings)
    again = pipe.run(settings)
    assert result.image.isfinite().all()
    assert torch.equal(result.latents, again.latents)  # stochastic ones too: the seed decides
    assert (result.companion is not None) == flow.SOLVERS[solver].reversible


def test_noise_may_be_given(pipe) -> None:
    drawn = pipe.generate("a", steps=STEPS, width=48)
    given = pipe.generate("a", steps=STEPS, noise=drawn.noise)
    assert torch.equal(given.image, drawn.image)
    assert given.settings.seed is None
    assert (given.settings.width, given.settings.height) == (48, 32)
    with pytest.raises(SettingsError, match="pass noise="):
        pipe.run(given.settings)
    with pytest.raises(SettingsError, match=r"noise must be floats \(2, 16, 4, 6\)"):
        pipe.generate("a", noise=drawn.noise, images_per_prompt=2)
    with pytest.raises(SettingsError, match="draws from the seed"):
        pipe.generate("a", noise=drawn.noise, solver="sde")


def test_sizes_are_checked_before_work(pipe) -> None:
    assert pipe.generate("a", steps=1, width=16, height=64).images[0].size == (16, 64)
    with pytest.raises(SettingsError, match="width must be at most 128"):
        pipe.generate("a", width=144)


def test_prompts_of_any_length_are_read_and_cuts_are_told(pipe) -> None:
    assert pipe.generate("", steps=1).notes == ()
    notes = pipe.generate(["a", "red circle " * 900], steps=1, negative="b " * 90).notes
    assert [note.split(":")[0] for note in notes] == [
        "prompt 1, clip_l",
        "prompt 1, clip_g",
        "negative prompt, clip_l",
        "negative prompt, clip_g",
    ]
    assert isinstance(pipe.encode_prompt("\x00\x07 control"), Encoding)


def test_a_generation_can_be_watched_and_stopped(pipe) -> None:
    generation = pipe.steps(Settings(prompts=(Prompt("a"),), steps=STEPS))
    assert len(generation) == STEPS
    with pytest.raises(RuntimeError, match="before the first step"):
        generation.result()
    steps = list(generation)
    assert [step.number for step in steps] == [0, 1, 2]
    assert torch.equal(generation.result().latents, steps[-1].x)
    first = next(iter(generation))
    assert torch.equal(first.x, steps[0].x)  # a second run is the first again
    assert torch.equal(generation.result().latents, first.x)


def test_a_picture_survives_its_own_encoding_by_shape(pipe) -> None:
    latents = pipe.encode(Image.new("RGB", (32, 16)))
    assert latents.shape == (1, 16, 2, 4)
    assert latents.dtype == torch.float32


def broken(pipe, part: str, name: str):
    """A copy of a pipeline with a NaN in one weight."""
    copied = copy.deepcopy(pipe)
    module = copied.text.clip_l if part == "clip_l" else getattr(copied, part)
    module.get_parameter(name).view(-1)[0] = torch.nan
    return copied


@pytest.mark.parametrize(
    ("part", "name", "stage"),
    [
        ("clip_l", "text_model.final_layer_norm.bias", "text encoders"),
        ("mmdit", "final_layer.linear.bias", "transformer"),
        ("vae", "decoder.conv_out.bias", r"autoencoder \(decoding\)"),
    ],
)
def test_nan_in_any_stage_is_an_error_and_no_picture(pipe, part, name, stage) -> None:
    with pytest.raises(NonFiniteError, match=f"the {stage} gave .* NaN or infinite values.* in float32"):
        broken(pipe, part, name).generate("a", steps=2)


def test_nan_that_comes_later_names_its_step(pipe) -> None:
    calls = []

    def spoil(_module, _inputs, output):
        calls.append(None)
        return output * torch.nan if len(calls) == 3 else output

    copied = copy.deepcopy(pipe)
    copied.mmdit.register_forward_hook(spoil)
    sigma = float(flow.sigmas(4)[2])
    with pytest.raises(NonFiniteError, match=f"at step 2, sigma {sigma:.6g}") as caught:
        copied.generate("a", steps=4)
    assert caught.value.sigma == pytest.approx(sigma)


def test_an_encoder_of_pictures_that_gives_nan_is_named(pipe) -> None:
    copied = broken(pipe, "vae", "encoder.conv_out.bias")
    with pytest.raises(NonFiniteError, match=r"autoencoder \(encoding\)"):
        copied.encode(torch.zeros(1, 3, 16, 16))


def test_settings_are_told_by_help_and_by_completion(pipe) -> None:
    for method, own in ((pipe.generate, "width"), (pipe.invert, "refine_steps"), (pipe.edit, "eta")):
        parameters = signature(method).parameters
        assert {"steps", "solver", own} <= parameters.keys()
        assert parameters["steps"].default == 28
        assert "given" not in parameters
        assert f"    {own}: " in method.__doc__


def test_all_parts_move_to_another_dtype(pipe, model_folder) -> None:
    for one_by_one in (False, True):
        moved = sd35.load(model_folder, one_by_one=one_by_one).to("cpu", torch.bfloat16)
        assert set(moved.dtypes.values()) == {torch.bfloat16}
        same = sd35.load(model_folder, dtype=torch.bfloat16)
        assert (
            moved.generate("a", steps=1).settings.made_with == same.complete(Settings(prompts="a")).made_with
        )
    with pytest.raises(SettingsError, match="no kind of device"):
        copy.deepcopy(pipe).to("nowhere")


def test_progress_goes_to_stderr_only_when_asked(pipe, capsys) -> None:
    pipe.generate("a", steps=2)
    assert capsys.readouterr() == ("", "")
    pipe.generate("a", steps=2, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err


@pytest.mark.parametrize("part", ["mmdit", "clip_l", "clip_g", "t5"])
def test_quantised_linears_may_stand_in_every_part(pipe, part, in_eight_bits) -> None:
    copied = copy.deepcopy(pipe)
    module = copied.mmdit if part == "mmdit" else getattr(copied.text, part)
    in_eight_bits(module, name="weight")
    assert copied.dtypes == pipe.dtypes
    drawn = copied.generate("a red circle", steps=2)
    exact = pipe.generate("a red circle", steps=2)
    assert drawn.image.isfinite().all()
    assert not torch.equal(drawn.latents, exact.latents)
    assert (drawn.latents - exact.latents).std() < 0.5 * exact.latents.std()
