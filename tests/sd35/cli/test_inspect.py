"""`sd35 inspect`, and `sd35 bench`."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdit import ControlNet, ControlNetConfig
from sd35.bench import ceilings, stages
from sd35.cli import bench


def test_a_whole_model(sd35, model_folder) -> None:
    status, out, err = sd35("inspect", model_folder, "--values")
    assert (status, err) == (0, "")
    assert out.startswith(f"{model_folder}: complete")
    assert "weights are finite" in out


def test_a_part_that_would_not_load_tells_by_the_status(sd35, model_folder, tmp_path) -> None:
    tensors = load_file(model_folder / "sd3.5_random.safetensors")
    tensors.pop("model.diffusion_model.final_layer.linear.bias")
    save_file(tensors, tmp_path / "broken.safetensors")
    status, out, _ = sd35("inspect", tmp_path / "broken.safetensors")
    assert status == 1
    assert "final_layer.linear.bias" in out


def test_weights_that_generate_refuses_tell_by_the_status(sd35, model_folder, tmp_path) -> None:
    tensors = load_file(model_folder / "sd3.5_random.safetensors")
    tensors["model.diffusion_model.final_layer.linear.bias"][0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    for options in ([], ["--values"]):
        status, out, _ = sd35("inspect", tmp_path / "nan.safetensors", *options)
        assert status == 1
        assert "FAILED" in out
        assert "final_layer.linear.bias" in out


def test_json_is_for_programs(sd35, model_folder) -> None:
    _, out, _ = sd35("inspect", model_folder, "--json")
    report = json.loads(out)
    assert report["is_complete"] is True
    assert set(report["components"]) == {"mmdit", "vae", "clip_l", "clip_g", "t5"}


def test_taps_are_listed_with_their_shapes(sd35, model_folder) -> None:
    status, out, _ = sd35("inspect", model_folder, "--taps")
    assert status == 0
    lines = out.splitlines()
    assert {"mmdit", "vae", "clip_l", "clip_g", "t5"} <= set(lines)
    assert any(line.startswith("  joint_blocks.0.x_block.attn.ln_q  (") for line in lines)


def test_taps_of_an_encoder_have_as_many_tokens_as_it_reads(sd35, model_folder) -> None:
    parts = json.loads(sd35("inspect", model_folder, "--taps", "--json")[1])
    shapes = {part: {tap["name"]: tap["shape"] for tap in taps} for part, taps in parts.items()}
    assert shapes["t5"]["output"] == [1, 77, 32]
    assert shapes["clip_l"]["last"] == [1, 77, 8]
    assert shapes["mmdit"]["context_embedder"] == [1, 154, 64]
    first = parts["mmdit"][0]
    assert set(first) == {"name", "shape", "dims", "text"}
    assert first["dims"][0] == "batch"


def test_a_controlnet_is_named_among_the_taps_and_not_listed(sd35, model_folder, tmp_path) -> None:
    net = ControlNet(ControlNetConfig(dim=64, depth=1, num_heads=1, pooled_dim=24))
    state = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    save_file(state, tmp_path / "controlnet.safetensors")
    status, out, err = sd35("inspect", tmp_path / "controlnet.safetensors", "--taps")
    assert (status, err) == (0, "")
    assert out == "controlnet\n  not listed: it runs beside the base that it steers, not by itself\n"
    assert json.loads(sd35("inspect", tmp_path, "--taps", "--json")[1]) == {"controlnet": None}
    status, out, err = sd35("inspect", tmp_path / "controlnet.safetensors")
    assert out.splitlines()[0].endswith("controlnet.safetensors: a ControlNet")
    assert "fetch" not in out

    (tmp_path / "vae.safetensors").symlink_to(model_folder / "sd3.5_random.safetensors")
    status, out, _ = sd35("inspect", tmp_path, "--taps")
    assert status == 0
    assert {"mmdit", "vae", "controlnet"} <= set(out.splitlines())


def test_a_source_that_is_none(sd35, tmp_path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"<html>")
    for source in (tmp_path / "a.safetensors", tmp_path / "absent.safetensors", tmp_path):
        status, out, err = sd35("inspect", source)
        assert (status, out) == (2, "")
        assert err.startswith("sd35 inspect: error: ")
        assert err.count("\n") == 1


def test_bench_measures_the_stages(sd35, model_folder, monkeypatch) -> None:
    monkeypatch.setattr(stages, "OURS", "pass")  # what a whole import takes is not asked here
    monkeypatch.setattr(stages, "HOST_BLOCKS", 2)
    monkeypatch.setitem(ceilings.SIDE, "cpu", 128)
    monkeypatch.setattr(ceilings, "COPIED", 2**20)
    status, out, _ = sd35("bench", "-m", model_folder, "--repeats", "1", "--device", "cpu")
    assert status == 0
    head, ceiling, _, *lines = out.splitlines()
    assert "float32 on cpu" in head
    assert "GFLOP/s" in ceiling
    assert lines[0].startswith("| stage | wall | CPU |")
    assert lines[2].startswith("| transformer, 32 px | ")
    assert lines[-1].startswith("| import | ")
    assert {line.count("|") for line in lines} == {7}
    assert tuple(stages.STAGES) == bench.ONLY
    status, out, _ = sd35(
        "bench", "-m", model_folder, "--repeats", "1", "--device", "cpu", "--only", "python"
    )
    assert (status, [line.split(",")[0] for line in out.splitlines()[5:]]) == (0, ["| a step's Python"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repeats", "0"), "--repeats must be at least 1"),
        (("--pixels", "30"), "--pixels must be multiples of 16, got 30"),
        (("--against", "wish"), "wish_peer.py to compare with"),
        (("--sizes", "huge"), "sizes must be one of medium, large"),
        (("--model", "tiny", "--sizes", "large"), "--sizes and --blocks are of random weights"),
    ],
)
def test_bench_refuses_before_work(sd35, arguments, message) -> None:
    status, out, err = sd35("bench", *arguments)
    assert (status, out) == (2, "")
    assert message in err
