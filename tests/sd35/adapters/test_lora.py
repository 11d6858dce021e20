"""A LoRA on a model: exact, beside the weights or in them, several at once, and gone to the last bit."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sd35
from mmdit import MMDiT, MMDiTConfig
from sd35 import SettingsError, capture
from sd35.adapters.lora import add_lora, lora_parameters, loras_on, remove_lora, set_lora

CONFIG = MMDiTConfig(
    dim=64, depth=2, num_heads=1, pos_embed_size=8, context_dim=32, pooled_dim=24, dual_blocks=(0,)
)
STEM = "diffusion_model."


@pytest.fixture
def model() -> MMDiT:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MMDiT(CONFIG)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.05)
    return model.double().eval().requires_grad_(False)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float32)


def velocity(model, dtype=torch.float64):
    inputs = randn(2, 16, 8, 8), torch.tensor([0.3, 0.8]), randn(2, 5, 32), randn(2, 24)
    with torch.no_grad():
        return model(*(tensor.to(dtype) for tensor in inputs))


@pytest.fixture
def lora(tmp_path):
    """Three layers, q and v of one, a convolution and a norm."""
    names = {
        f"{STEM}joint_blocks.0.x_block.mlp.fc1": (256, 64),
        f"{STEM}final_layer.linear": (64, 64),
        "transformer.transformer_blocks.1.attn.to_q": (64, 64),
        "transformer.transformer_blocks.1.attn.to_v": (64, 64),
        "transformer.norm_out.linear": (128, 64),
        f"{STEM}x_embedder.proj": (64, 64),
    }
    tensors = {}
    for seed, (name, (rows, columns)) in enumerate(names.items()):
        tensors[f"{name}.lora_down.weight"] = randn(3, columns, seed=seed)
        tensors[f"{name}.lora_up.weight"] = randn(rows, 3, seed=seed) / 10
        tensors[f"{name}.alpha"] = torch.tensor(1.5)
    tensors[f"{STEM}joint_blocks.0.x_block.attn.ln_q.diff"] = randn(64)
    tensors[f"{STEM}final_layer.linear.diff_b"] = randn(64)
    path = tmp_path / "style.safetensors"
    save_file(tensors, path)
    return path, tensors


def by_hand(model, tensors, scale):
    """The same model with the update in its weights, written out."""
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    def product(name):
        return tensors[f"{name}.lora_up.weight"].double() @ tensors[f"{name}.lora_down.weight"].double() * 0.5

    for path in ("joint_blocks.0.x_block.mlp.fc1", "final_layer.linear", "x_embedder.proj"):
        state[f"{path}.weight"] += scale * product(STEM + path).view_as(state[f"{path}.weight"])
    qkv = state["joint_blocks.1.x_block.attn.qkv.weight"]
    qkv[:64] += scale * product("transformer.transformer_blocks.1.attn.to_q")
    qkv[128:] += scale * product("transformer.transformer_blocks.1.attn.to_v")
    first, second = product("transformer.norm_out.linear").chunk(2)
    state["final_layer.adaLN_modulation.1.weight"] += scale * torch.cat([second, first])
    norm = "joint_blocks.0.x_block.attn.ln_q.weight"
    state[norm] += scale * tensors[f"{STEM}joint_blocks.0.x_block.attn.ln_q.diff"].double()
    state["final_layer.linear.bias"] += scale * tensors[f"{STEM}final_layer.linear.diff_b"].double()
    other = MMDiT(CONFIG).double()
    other.load_state_dict(state)
    return other.eval()


def assert_same(model, state):
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("merge", [False, True])
def test_equals_the_merge_written_out_and_goes_to_the_last_bit(model, lora, merge):
    path, tensors = lora
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = add_lora(model, path, 0.7, merge=merge)
    expected = velocity(by_hand(rebuilt(state), tensors, 0.7))
    torch.testing.assert_close(velocity(model), expected, rtol=0, atol=1e-12)
    assert report.has_effect
    assert report.keys == len(tensors)
    assert report.name == "style"
    assert {row.path for row in report.rows} == {
        "joint_blocks.0.x_block.mlp.fc1",
        "final_layer.linear",
        "joint_blocks.1.x_block.attn.qkv",
        "final_layer.adaLN_modulation.1",
        "x_embedder.proj",
        "joint_blocks.0.x_block.attn.ln_q",
    }
    if merge:
        assert list(model.state_dict()) == list(state)
    set_lora(model, "style", -0.2)
    torch.testing.assert_close(
        velocity(model), velocity(by_hand(rebuilt(state), tensors, -0.2)), rtol=0, atol=1e-12
    )
    remove_lora(model, "style")
    assert_same(model, state)


def rebuilt(state):
    model = MMDiT(CONFIG).double()
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("merges", [(False, False), (True, False), (False, True), (True, True)])
def test_several_add_up_and_leave_in_any_order(model, lora, merges):
    path, tensors = lora
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    add_lora(model, path, 0.7, "one", merge=merges[0])
    add_lora(model, path, 0.4, "two", merge=merges[1])
    assert {(one.name, one.scale) for one in loras_on(model)} == {("one", 0.7), ("two", 0.4)}
    torch.testing.assert_close(
        velocity(model), velocity(by_hand(rebuilt(state), tensors, 1.1)), rtol=0, atol=1e-12
    )
    remove_lora(model, "one")
    torch.testing.assert_close(
        velocity(model), velocity(by_hand(rebuilt(state), tensors, 0.4)), rtol=0, atol=1e-12
    )
    remove_lora(model, "two")
    assert_same(model, state)


def test_taps_see_the_base_and_the_update_apart(model, lora):
    add_lora(model, lora[0], name="style")
    stem = "joint_blocks.0.x_block.mlp.fc1"
    with capture(model, f"{stem}|{stem}.base|{stem}.loras.style".split("|")) as taps:
        velocity(model)
    whole, base, update = (taps[name] for name in (stem, f"{stem}.base", f"{stem}.loras.style"))
    torch.testing.assert_close(whole, base + update)
    assert update.abs().max() > 0


def test_only_the_small_matrices_are_trained(model, lora):
    add_lora(model, lora[0], name="style")
    small = lora_parameters(model, "style")
    for parameter in small.values():
        parameter.requires_grad_()
    inputs = randn(1, 16, 8, 8), torch.tensor([0.5]), randn(1, 5, 32), randn(1, 24)
    model(*(tensor.double() for tensor in inputs)).square().mean().backward()
    trained = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
    assert trained == {id(parameter) for parameter in small.values()}


def test_a_compiled_model_follows(model, lora):
    model.joint_blocks[1].compile(backend="eager")
    before = velocity(model)
    add_lora(model, lora[0], name="style")
    plain = velocity(by_hand(rebuilt_from(model), lora[1], 1.0))
    torch.testing.assert_close(velocity(model), plain, rtol=0, atol=1e-12)
    remove_lora(model, "style")
    assert torch.equal(velocity(model), before)


def rebuilt_from(model):
    state = {key.replace(".base.", "."): tensor for key, tensor in model.state_dict().items()}
    return rebuilt({key: tensor for key, tensor in state.items() if ".loras." not in key})


def test_a_merge_in_bfloat16_comes_back_to_the_last_bit(model, lora):
    model = model.bfloat16()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    add_lora(model, lora[0], name="style", merge=True)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    remove_lora(model, "style")
    assert_same(model, state)


def test_an_update_of_zero_is_said_to_be_without_effect(model, tmp_path):
    path = tmp_path / "new.safetensors"
    stem = f"{STEM}final_layer.linear"
    save_file({f"{stem}.lora_down.weight": randn(2, 64), f"{stem}.lora_up.weight": torch.zeros(64, 2)}, path)
    before = velocity(model)
    with pytest.warns(UserWarning, match="without effect: every update in it is zero"):
        report = add_lora(model, path)
    assert not report.has_effect
    assert "without effect" in str(report)
    assert torch.equal(velocity(model), before)


def test_mistakes_are_told_and_change_nothing(model, lora):
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for wrong, message in [
        ({"name": "a.b"}, "letters, digits"),
        ({"scale": float("nan")}, "finite number"),
        ({"scale": "1"}, "finite number"),
    ]:
        with pytest.raises(SettingsError, match=message):
            add_lora(model, lora[0], **wrong)
    with pytest.raises(SettingsError, match="no LoRA 'x' here; there are none"):
        remove_lora(model, "x")
    with pytest.raises(SettingsError, match="not on a Linear"):
        add_lora(nn.Linear(1, 1), lora[0])
    assert_same(model, state)
    add_lora(model, lora[0])
    with pytest.raises(SettingsError, match="already a LoRA 'style'"):
        add_lora(model, lora[0])


def test_it_is_the_public_function():
    assert sd35.add_lora is add_lora
