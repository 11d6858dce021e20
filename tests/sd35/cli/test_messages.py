"""What a mistake is called: by the option that the user wrote, in one line, by the command's whole name."""

import pytest

import sd35 as library
from sd35.cli import entry
from sd35.errors import SettingsError


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--steps 0", "--steps must be a whole number from 1 to 10000, got 0"),
        ("--cfg nan", "--guidance-scale must be a finite number, got nan"),
        ("--seed 4294967295 --batch 2", "--seed must be 0 to 4294967294 (image k of 2 has the seed + k)"),
        ("--guidance-interval 0.8 0.2", "--guidance-interval must be two rising noise levels in [0, 1]"),
        ("--guidance-threshold 3 0.5", "--guidance-threshold cannot be used: percentile must be in (0, 1]"),
        ("--guidance-rescale 2", "--guidance-rescale must be in [0, 1], got 2"),
        ("--guidance-rule best", "--guidance-rule must be one of plain, cfg_zero, apg; got 'best'"),
        ("--skip-layer mine", "--skip-layer must be one of reference, diffusers; got 'mine'"),
        ("--zero-steps 100", "--zero-steps must be fewer than the 28 steps, got 100"),
        ("--schedule mine", "--schedule must be one of"),
        ("--skipped 2", "--skipped has no effect here, only with skip-layer guidance (skip_layer): leave"),
        ("--apg-norm 3", "--apg-norm has no effect here, only with the rule apg: leave it out"),
        ("--least-ratio 0.3", "--least-ratio has no effect here, only with the schedule tailed: leave"),
        (
            "--guidance-rescale 0.5 --cfg 1",
            "--guidance-rescale has no effect here, only with a guidance scale other than 1: leave it out",
        ),
        (
            "--guidance-rule apg --apg-norm 3 --cfg 1",
            "--guidance-rule, --apg-norm has no effect here, only with a guidance scale other than 1",
        ),
        (
            "--cfg 1 --zero-steps 1 --guidance-rescale 0.3",
            "--zero-steps, --guidance-rescale has no effect here, only with a guidance scale other than 1",
        ),
        ("--lora x.safetensors:", "a LoRA is FILE or FILE:SCALE, and '' is no number, in 'x.safetensors:'"),
        ("--lora x.safetensors:a", "a LoRA is FILE or FILE:SCALE, and 'a' is no number, in 'x.safe"),
        ("--lora x:nan", "the scale of a LoRA must be a finite number, got nan"),
    ],
)
def test_a_setting_is_called_by_its_option(sd35, tmp_path, monkeypatch, option, line) -> None:
    monkeypatch.chdir(tmp_path)  # a picture that is drawn after all does not lie among the sources
    status, out, err = sd35("generate", "a star", *option.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"sd35 generate: error: {line}")


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("lora --rank 0", "sd35 train lora: error: --rank must be a whole number of at least 1, got 0"),
        ("vae --batch-size 0", "sd35 train vae: error: --batch-size must be a whole number of at least 1"),
        ("full --warmup 9 --steps 9", "sd35 train full: error: --warmup of 9 leaves nothing of 9 steps"),
        ("lora --ema-power 1", "sd35 train lora: error: --ema-power has no effect here, only with ema"),
        ("vae --rank 4", "sd35 train vae: error: unrecognized arguments: --rank 4 (see sd35 train vae --h"),
        ("vae --kl x", "sd35 train vae: error: argument --kl: invalid float value: 'x' (see sd35 train vae"),
    ],
)
def test_a_way_of_training_is_called_by_its_name(sd35, tmp_path, option, line) -> None:
    status, out, err = sd35("train", *option.split(), "--data", tmp_path, "-o", tmp_path / "run")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)


def test_from_python_a_setting_is_called_by_its_name() -> None:
    with pytest.raises(SettingsError, match=r"^interval must be two rising noise levels"):
        library.Guidance(interval=(0.8, 0.2))
    with pytest.raises(SettingsError, match=r"^threshold cannot be used: percentile must be"):
        library.Guidance(threshold=(3, 0.5))


def test_blocks_that_are_not_there_are_told_with_those_that_are(sd35, model_folder) -> None:
    drawing = ("generate", "a", "-m", model_folder, "--steps", 1, "--skip-layer", "reference")
    advice = "and this transformer has 0 to 1: name some of those (skipped, on the command line --skipped)"
    for option, blocks in {(): "[7, 8, 9]", ("--skipped", 1, 5): "[5]"}.items():
        status, _, err = sd35(*drawing, *option)
        assert status == 2
        assert err == f"sd35 generate: error: skip-layer guidance leaves out blocks {blocks}, {advice}\n"


def test_a_file_whose_name_has_a_colon_is_a_lora(tmp_path) -> None:
    path = tmp_path / "a:b"
    path.touch()
    assert library.Lora.of(str(path)).source == str(path)
    assert library.Lora.of("c:\\loras\\a.safetensors").scale == 1


def test_every_exit_status_is_in_the_help(sd35) -> None:
    told = sd35("--help")[1].split("exit status:\n")[1].splitlines()
    assert [int(line.split()[0]) for line in told] == [
        entry.OK,
        entry.FAILED,
        entry.MISTAKE,
        entry.INTERRUPTED,
    ]


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("invert", "usage: sd35 invert FILE [PROMPT] -o FILE [options]\n"),
        ("edit", "usage: sd35 edit FILE PROMPT -o PNG [options]\n"),
        ("watermark", "usage: sd35 watermark {put PROMPT,find FILE} --key N [options]\n"),
        ("train controlnet", "usage: sd35 train controlnet --data PATH --control-data DIR -o DIR [options"),
        ("train lora", "usage: sd35 train lora --data PATH -o DIR [options]\n"),
    ],
)
def test_a_command_with_many_options_says_first_what_it_needs(sd35, command, usage) -> None:
    assert sd35(*command.split(), "--help")[1].startswith(usage)


def test_a_list_of_solvers_tells_what_a_step_costs(sd35) -> None:
    lines = sd35("list", "solvers")[1].splitlines()
    cost = {line.split()[0]: line.rpartition(", ")[2].rstrip(")") for line in lines[1:]}
    assert cost["rex"] == cost["heun"] == "2 evaluations a step"
    assert cost["euler"] == "1 evaluation a step"
    assert cost["dopri5"] == "as many evaluations as it takes"
