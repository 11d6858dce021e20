"""CUDA graphs as an option: refused where they cannot be, and true to what is changed."""

from functools import partial

import pytest
import torch
from safetensors.torch import save_file

import mmdit.graphs
import sd35
from sd35 import SettingsError, device, loading
from tests.mmdit.test_graphs import Recorder


def test_graphs_are_refused_where_there_are_none_or_where_weights_move(model_folder, monkeypatch) -> None:
    with pytest.raises(SettingsError, match="are for CUDA devices, and this is cpu: leave them out"):
        sd35.load(model_folder, cuda_graphs=True)
    monkeypatch.setattr(loading, "check_graphs", lambda _: None)
    with pytest.raises(SettingsError, match=r"memory low moves them .*: leave it out, or ask for memory off"):
        sd35.load(model_folder, "meta", memory="low", cuda_graphs=True)
    device.check_graphs(torch.device("cuda", 0))


def test_a_model_with_graphs_draws_the_same_bits_and_follows_a_lora(
    model_folder, pipe, tmp_path, monkeypatch
) -> None:
    """A stand-in records: whatever it repeats reads and writes the same tensors."""
    recorder = Recorder()
    monkeypatch.setattr(loading, "check_graphs", lambda _: None)
    monkeypatch.setattr(loading, "graph_forward", partial(mmdit.graphs.graph_forward, record=recorder))
    graphed, options = sd35.load(model_folder, cuda_graphs=True), {"steps": 3, "seed": 1}
    assert torch.equal(graphed.generate("a", **options).image, pipe.generate("a", **options).image)
    assert (recorder.recorded, recorder.replayed) == (1, 3)
    key = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    tensors = {f"{key}.lora_down.weight": torch.ones(2, 64), f"{key}.lora_up.weight": torch.ones(192, 2)}
    save_file(tensors, tmp_path / "lora.safetensors")
    graphed.add_lora(tmp_path / "lora.safetensors", name="style")
    with_lora = graphed.generate("a", **options).image
    assert recorder.recorded == 2
    graphed.set_lora("style", 0.0)  # a number that the kernels have within them
    assert not torch.equal(graphed.generate("a", **options).image, with_lora)
    assert recorder.recorded == 3
    graphed.to("cpu")
    assert "forward" not in graphed.mmdit.__dict__
