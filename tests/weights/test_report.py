"""Inspecting says what a source holds, how it was told, and what to fetch."""

import json

import pytest
import torch

import weights
from mmdit import position_table


def test_a_whole_model(official, parts):
    report = weights.inspect(official)
    assert report.is_complete
    assert list(report.components) == ["mmdit", "vae", "clip_l", "clip_g", "t5"]
    mmdit = report.components["mmdit"]
    expected = sum(tensor.numel() for tensor in parts["mmdit"].values())
    assert (mmdit.parameters, mmdit.bytes, mmdit.tensors) == (expected, 4 * expected, len(parts["mmdit"]))
    assert mmdit.dtypes == {"F32": expected}
    assert mmdit.variant == "unknown"
    assert mmdit.decided.startswith("dim 128, depth 3, qk_norm yes, dual_blocks 0 1, pos_embed_size 8")
    assert report.components["clip_g"].decided.startswith("the name clip_g.safetensors")


def test_the_report_reads_as_a_table_and_as_json(all_in_one):
    report = weights.inspect(all_in_one)
    text = str(report)
    assert text.splitlines()[0] == f"{all_in_one}: not a whole model"
    assert "tokenizer_3  fetch the folder tokenizer_3/ (tokenizer.json or spiece.model)" in text
    assert "(text_encoders.clip_g.transformer.)" in text
    read = json.loads(json.dumps(report.as_dict()))
    assert read["is_complete"] is False
    assert read["components"]["vae"]["prefix"] == "first_stage_model."
    assert set(read["missing"]) == {"tokenizer", "tokenizer_2", "tokenizer_3"}


def test_what_is_missing_comes_with_what_to_fetch(tmp_path, writers, parts):
    report = weights.inspect(writers["write"](tmp_path / "vae.safetensors", parts["vae"]))
    assert set(report.missing) == {
        "mmdit",
        "clip_l",
        "clip_g",
        "t5",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    }
    assert "t5xxl_fp16.safetensors, 9.8 GB" in report.missing["t5"]


def test_misfits_are_listed_instead_of_raised(tmp_path, writers, parts):
    state = dict(parts["vae"])
    del state["decoder.conv_out.bias"]
    state["decoder.extra"] = torch.ones(3)
    report = weights.inspect(writers["write"](tmp_path / "vae.safetensors", state))
    assert not report.components["vae"].is_complete
    assert [(misfit.kind, misfit.name) for misfit in report.components["vae"].misfits] == [
        ("missing", "decoder.conv_out.bias"),
        ("left over", "decoder.extra"),
    ]
    assert "vae does not fit" in str(report)


def test_a_part_without_its_sizes_is_still_reported(tmp_path, writers, parts):
    state = {name: tensor for name, tensor in parts["mmdit"].items() if name != "pos_embed"}
    report = weights.inspect(writers["write"](tmp_path / "m.safetensors", state))
    assert report.components["mmdit"].variant == "unknown"
    assert "pos_embed" in report.components["mmdit"].misfits[0].name


@pytest.mark.parametrize(
    ("table", "note"),
    [
        (position_table(128, 48, base_size=64), "is the sin-cos formula with base 64"),
        (position_table(128, 48), "is the sin-cos formula with base 48"),
        (position_table(128, 48, base_size=64) + 0.5, "differs from the sin-cos formula with base 64 by 0.5"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stored_position_table_is_compared_and_wins(tmp_path, writers, parts, table, note, dtype):
    state = {name: tensor.to(dtype) for name, tensor in (parts["mmdit"] | {"pos_embed": table}).items()}
    path = writers["write"](tmp_path / "m.safetensors", state)
    assert note in str(weights.inspect(path))
    assert torch.equal(weights.load_mmdit(path).pos_embed, table.to(dtype))


def test_values_are_read_when_asked_for(tmp_path, writers, parts):
    state = {name: tensor.clone() for name, tensor in parts["vae"].items()}
    path = writers["write"](tmp_path / "vae.safetensors", state)
    fit, finite = weights.inspect(path, values=True).components["vae"].checks
    assert (fit.name, fit.passed) == ("keys and shapes", True)
    assert finite.passed is True
    assert finite.result.endswith("weights are finite")
    state["encoder.conv_in.bias"][0] = float("nan")
    path = writers["write"](tmp_path / "bad.safetensors", state)
    for values in (True, False):  # what loading would refuse is no complete part, however much is read
        report = weights.inspect(path, values=values)
        assert not report.components["vae"].is_complete
        assert "FAILED:" in str(report)
        assert "NaN or infinite weights in 1 of" in report.components["vae"].checks[1].result


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda name: "ln_" not in name, "sd3_medium.safetensors"),
        (lambda name: True, "sd3.5_medium.safetensors"),
    ],
)
def test_what_to_fetch_is_of_the_model_that_is_there(tmp_path, writers, parts, change, file):
    state = {name: tensor for name, tensor in parts["mmdit"].items() if change(name)}
    report = weights.inspect(writers["write"](tmp_path / "m.safetensors", state))
    repository = "stabilityai/stable-diffusion-3" + (".5" if "3.5" in file else "") + "-medium"
    assert report.missing["vae"].startswith(file)
    assert report.missing["vae"].endswith(f"from {repository}")
    assert report.missing["t5"].endswith(f"from {repository}")
    assert repository in report.missing["tokenizer"]


def test_the_clip_l_projection_is_compared_with_the_identity(diffusers):
    notes = weights.inspect(diffusers).components["clip_l"].notes
    assert notes == ("text_projection is the identity; it is not used, since SD3 does not project CLIP-L",)
