"""A transformer in 8 bits: the file, the report, and LoRAs on it."""

import pytest
import torch
from safetensors.torch import save_file

import weights
from sd35 import SettingsError
from sd35.adapters.change import Change, Changes
from sd35.adapters.layer import adapted
from sd35.adapters.lora import add_lora, remove_lora
from sd35.loras import Lora
from sd35.size import native_size
from sd35.tasks.quantise import made_up_states, quantise
from weights.adapters import Update
from weights.packed import linear
from weights.packed.linear import PackedLinear
from weights.packed.write import rounded


@pytest.fixture(scope="module")
def component(model_folder):
    return weights.resolve(model_folder, ["mmdit"]).component("mmdit")


def velocities(model):
    with torch.no_grad():
        return torch.cat(
            [model(s.latents, s.sigma, s.context, s.pooled) for s in made_up_states(model, side=4)]
        )


@pytest.mark.parametrize(("to", "most"), [("int8", 0.02), ("fp8", 0.06), ("fp8_e5m2", 0.12)])
def test_the_report_is_of_the_file(model_folder, component, tmp_path, to, most):
    model = weights.load_mmdit(model_folder, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "few.safetensors"
    done = quantise(component, model, made_up_states(model, side=4), path, to=to)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    written = weights.load_mmdit(path, dtype=torch.float32)
    layers = [name for name, layer in written.named_modules() if isinstance(layer, PackedLinear)]
    assert [row.path for row in done.rows] == layers
    difference = (velocities(written) - velocities(model)).norm() / velocities(model).norm()
    assert done.error == pytest.approx(float(difference), rel=1e-3)
    assert 0 < done.error < most
    assert all(0 < row.error < 3 * done.error for row in done.rows)
    assert done.bytes_after == path.stat().st_size < done.bytes_before
    assert f"all of them, {to}" in str(done)
    with pytest.raises(FileExistsError):
        quantise(component, model, made_up_states(model, side=4), path, to=to)
    few = weights.resolve(path, ["mmdit"]).component("mmdit")
    with pytest.raises(SettingsError, match="in few bits already"):
        quantise(few, written, made_up_states(model, side=4), tmp_path / "b.safetensors")


def test_the_file_keeps_the_size_that_the_model_draws_and_its_name(component, model_folder, tmp_path):
    path = tmp_path / "few.safetensors"
    model = weights.load_mmdit(model_folder)
    quantise(component, model, [next(made_up_states(model, side=4))], path)
    few = weights.resolve(path, ["mmdit"]).component("mmdit")
    assert native_size(few) == native_size(component) == (32, 32)
    assert few.unit.metadata["modelspec.title"] == "sd3.5_random"


@pytest.mark.parametrize("merge", [False, True])
def test_a_lora_goes_on_weights_in_few_bits_and_off_again(model_folder, component, tmp_path, merge):
    model = weights.load_mmdit(model_folder, dtype=torch.float32)
    quantise(component, model, made_up_states(model, side=4), tmp_path / "few.safetensors")
    few = weights.load_mmdit(tmp_path / "few.safetensors", dtype=torch.float64)
    whole = weights.load_mmdit(tmp_path / "few.safetensors", dtype=torch.float64, unpack=True)
    stem = "diffusion_model.joint_blocks.0.x_block.mlp.fc1"
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 64, generator=generator), torch.randn(256, 3, generator=generator)
    path = tmp_path / "lora.safetensors"
    save_file({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, path)
    before = few.state_dict()
    add_lora(few, path, 0.5, merge=merge)
    whole.joint_blocks[0].x_block.mlp.fc1.weight += 0.5 * up.double() @ down.double()
    torch.testing.assert_close(velocities(few), velocities(whole))
    remove_lora(few, "lora")
    assert list(few.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in few.state_dict().items())


def test_nothing_else_is_a_target(component, tmp_path):
    with pytest.raises(SettingsError, match="weights are rounded to int8, fp8, fp8_e5m2, got 'int4'"):
        quantise(component, None, [], tmp_path / "a.safetensors", to="int4")


def test_a_lora_beside_weights_in_few_bits_unpacks_them_once_a_call(monkeypatch):
    calls, unpack = [], linear.unpacked
    monkeypatch.setattr(linear, "unpacked", lambda *args: calls.append(args) or unpack(*args))
    layer = adapted(PackedLinear(rounded(torch.randn(8, 8), "int8"), bias=False))
    tensors = {"down": torch.randn(2, 8), "up": torch.randn(8, 2)}
    update = Update("mmdit", "a", "lora", tensors, ("a",), rows=(0, 8), rank=2)
    layer.loras["style"] = Changes([Change(update, 1.0)], Lora("style"))
    layer(torch.randn(3, 8))
    assert len(calls) == 1
