import pytest
import torch

from mmdit import init_weights, position_table


@pytest.fixture
def fresh(build):
    """A model whose every number has been drawn for training."""
    model = build()
    init_weights(model, torch.Generator().manual_seed(0))
    return model


def test_the_first_velocity_is_zero(fresh, inputs):
    assert not fresh(**inputs).any()


def test_every_block_starts_as_the_identity(fresh):
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(1, n, 64, generator=generator) for n in (6, 4))
    for block in fresh.joint_blocks:
        y, z = block(x, context, torch.ones(1, 64))
        assert torch.equal(y, x)
        assert z is None or torch.equal(z, context)


def test_everything_but_modulations_and_the_last_layer_is_alive(fresh):
    zero = {name for name, tensor in fresh.state_dict().items() if not tensor.any()}
    still = {name for name in fresh.state_dict() if "adaLN" in name or name.endswith(".bias")}
    assert zero == still | {"final_layer.linear.weight"}


def test_scale_of_the_weights(fresh):
    qkv = fresh.joint_blocks[0].x_block.attn.qkv.weight
    assert qkv.abs().max() <= (6 / (64 + 192)) ** 0.5  # Xavier's bound
    assert qkv.std().item() == pytest.approx((2 / (64 + 192)) ** 0.5, rel=0.05)
    assert fresh.t_embedder.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_positions_are_the_computed_table(fresh):
    assert torch.equal(fresh.pos_embed, position_table(64, 5).float())


def test_the_generator_decides_every_number(build):
    first, same, other = build(), build(), build()
    before = torch.get_rng_state()
    for model, seed in ((first, 0), (same, 0), (other, 1)):
        init_weights(model, torch.Generator().manual_seed(seed))
    for (name, a), b in zip(first.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.x_embedder.proj.weight, other.x_embedder.proj.weight)
    assert torch.equal(torch.get_rng_state(), before)
