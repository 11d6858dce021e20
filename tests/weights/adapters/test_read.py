"""A LoRA is read whole and exactly, or refused in one line that says what it is."""

import json

import pytest
import torch

from weights import AdapterError, CheckpointError
from weights.adapters import read_adapter

Q = "transformer.transformer_blocks.2.attn.to_q"
PROJ = "lora_unet_joint_blocks_0_x_block_attn_proj"


def test_updates_know_their_rows_and_their_order(save, peft, shapes):
    updates = {(*update.rows, update.swap): update for update in read_adapter(save(peft), shapes).updates}
    assert set(updates) == {(0, 128, False), (256, 384, False), (0, 256, True)}
    assert all(update.rank == 4 and update.scale == 1 for update in updates.values())
    assert updates[0, 128, False].path == "joint_blocks.2.x_block.attn.qkv"


def test_alpha_is_divided_by_the_rank(save, kohya, shapes):
    (update,) = read_adapter(save(kohya), shapes).updates
    assert (update.alpha, update.rank, update.scale) == (1.0, 4, 0.25)


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"attn.to_q": 2}}, 0.5),
        ({"alpha_pattern": {"to_k": 2}}, 2.0),
        ({"r": 8, "rank_pattern": {r"transformer_blocks\.\d\.attn.to_q": 4}}, 2.0),
    ],
)
@pytest.mark.parametrize("where", ["header", "header without part", "folder"])
def test_alpha_comes_from_where_peft_leaves_it(save, peft, shapes, change, scale, where, tmp_path):
    config = {"r": 4, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False} | change
    tensors = {key: tensor for key, tensor in peft.items() if "to_q" in key}
    if where == "folder":
        source = save(tensors, name="adapter_model.safetensors").parent
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    else:
        stored = config if "without" in where else {f"transformer.{key}": config[key] for key in config}
        source = save(tensors, {"lora_adapter_metadata": json.dumps(stored)})
    (update,) = read_adapter(source, shapes).updates
    assert update.scale == scale


def test_alpha_in_a_tensor_wins_over_the_header(save, peft, shapes):
    tensors = {key: tensor for key, tensor in peft.items() if "to_q" in key} | {
        f"{Q}.alpha": torch.tensor(2.0)
    }
    metadata = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8})}
    (update,) = read_adapter(save(tensors, metadata), shapes).updates
    assert update.scale == 0.5


def test_parts_that_are_not_here_are_listed(save, peft, shapes):
    extra = {f"lora_te3_encoder_block_0_layer_0_SelfAttention_q.{name}": torch.ones(1) for name in ("alpha",)}
    adapter = read_adapter(save(peft | extra), shapes)
    assert list(adapter.passed_over) == list(extra)
    assert "text encoder T5, which is not here" in adapter.passed_over[next(iter(extra))]
    with pytest.raises(AdapterError, match="changes only the text encoder T5"):
        read_adapter(save(extra), shapes)


def with_(tensors, **changes):
    return tensors | changes


WRONG = {
    "an unknown layer": (
        lambda t: t | {"lora_unet_joint_blocks_0_x.alpha": torch.ones(1)},
        "no place in an SD3",
    ),
    "a block too many": (
        lambda t: {key.replace("blocks_0", "blocks_37"): tensor for key, tensor in t.items()},
        "which has 3 blocks: it is a LoRA of SD3.5-large, which has 38",
    ),
    "a second attention where none is": (
        lambda t: {key.replace("0_x_block_attn", "2_x_block_attn2"): tensor for key, tensor in t.items()},
        "second attentions are in blocks 0 to 12 of SD3.5-medium alone",
    ),
    "another width": (
        lambda t: (
            t
            | {f"{PROJ}.lora_down.weight": torch.ones(4, 1536), f"{PROJ}.lora_up.weight": torch.ones(1536, 4)}
        ),
        r"1536 x 1536 and the layer's weight 128 x 128: it was made for a width of 1536 \(SD3-medium or",
    ),
    "transposed matrices": (lambda t: {key: tensor.T for key, tensor in t.items()}, "update is 4 x 4"),
    "only one matrix": (lambda t: {k: v for k, v in t.items() if "up" not in k}, "down, up belong together"),
    "alpha alone": (lambda t: {k: v for k, v in t.items() if "alpha" in k}, "no weights to go with it"),
    "rank 0": (
        lambda t: {k: v[:0] if "down" in k else v[:, :0] if "up" in k else v for k, v in t.items()},
        "do not share a rank",
    ),
    "NaN": (lambda t: {k: v * float("nan") if "down" in k else v for k, v in t.items()}, "NaN or infinity"),
    "integers": (lambda t: {k: v.to(torch.int8) for k, v in t.items()}, "of dtype int8, without a scale"),
    "alpha infinite": (lambda t: t | {f"{PROJ}.alpha": torch.tensor(float("inf"))}, "alpha is inf"),
    "alpha of three": (lambda t: t | {f"{PROJ}.alpha": torch.ones(3)}, "alpha is one number"),
    "alpha 0": (
        lambda t: t | {f"{PROJ}.alpha": torch.zeros(())},
        "alpha is 0, which ComfyUI reads as no effect",
    ),
    "two spellings": (lambda t: t | {f"{PROJ}.lora_A.weight": torch.ones(4, 128)}, "is named twice"),
    "rows named twice": (
        lambda t: (
            t
            | {f"{Q.replace('.2.', '.0.')}.lora_{s}.weight": torch.ones(128, 128) for s in "AB"}
            | {f"{PROJ[:-4]}qkv.diff": torch.ones(384, 128)}
        ),
        "change the same rows of joint_blocks.0.x_block.attn.qkv",
    ),
    "a magnitude of no axis": (lambda t: t | {f"{PROJ}.dora_scale": torch.ones(7, 1)}, "fits no axis"),
    "a magnitude of either axis": (lambda t: t | {f"{PROJ}.dora_scale": torch.ones(128)}, "square layer"),
    "a magnitude alone": (lambda t: {f"{PROJ}.dora_scale": torch.ones(128, 1)}, "no weights to go with it"),
    "three of four factors": (
        lambda t: {f"{PROJ}.hada_{name}": torch.ones(128, 128) for name in ("w1_a", "w1_b", "w2_a")},
        "hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b belong together",
    ),
    "a Kronecker product of another size": (
        lambda t: {f"{PROJ}.lokr_w1": torch.ones(8, 8), f"{PROJ}.lokr_w2": torch.ones(16, 17)},
        "its update is 128 x 136 and the layer's weight 128 x 128",
    ),
    "FLUX": (lambda t: {"lora_unet_double_blocks_0_img_attn_proj.alpha": torch.ones(())}, "a LoRA of FLUX.1"),
    "SDXL": (
        lambda t: {"unet.down_blocks.1.to_q.lora_A.weight": torch.ones(4, 4)},
        "Stable Diffusion XL or 1.5",
    ),
    "OFT": (lambda t: {f"{PROJ}.oft_blocks": torch.ones(4, 4)}, "an OFT or BOFT adapter"),
    "a checkpoint": (
        lambda t: {"joint_blocks.0.x_block.attn.proj.weight": torch.ones(4, 4)},
        "is no LoRA but weights",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_lora_of_this_model_is_refused(save, kohya, shapes, what):
    change, message = WRONG[what]
    with pytest.raises(AdapterError, match=message) as error:
        read_adapter(save(change(kohya)), shapes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "is no JSON"),
        (json.dumps({"r": 64, "lora_alpha": 8}), "the rank 64 and its tensors have 4"),
        (json.dumps({"r": 4}), "configuration cannot be read"),
        (json.dumps({"r": 4, "lora_alpha": 8, "alpha_pattern": {"(": 2}}), "configuration cannot be read"),
        (json.dumps({"r": 4, "lora_alpha": 8, "peft_type": "OFT"}), "of the type OFT, not a LoRA"),
    ],
)
def test_a_scale_that_nobody_knows_is_refused(save, peft, shapes, metadata, message):
    with pytest.raises(AdapterError, match=message):
        read_adapter(save(peft, {"lora_adapter_metadata": metadata}), shapes)


@pytest.fixture(scope="session")
def reference_shapes(shared_reference):
    from safetensors import safe_open

    names = {"mmdit": "mmdit_qknorm_dual", "clip_l": "clip_l_like", "clip_g": "clip_g_like", "t5": "t5_like"}
    shapes = {}
    for part, name in names.items():
        with safe_open(shared_reference / "parity" / f"{name}.safetensors", "pt") as file:
            keys = [key for key in file.keys() if key.startswith("weights/")]  # noqa: SIM118
            shapes[part] = {
                key.removeprefix("weights/").removeprefix("model.diffusion_model."): tuple(
                    file.get_slice(key).get_shape()
                )
                for key in keys
            }
    return shapes


def test_every_file_to_refuse_is_refused(shared_reference, reference_shapes):
    folder = shared_reference / "adapters" / "bad"
    names = json.loads((folder / "index.json").read_text())
    loads = {"alpha_negative", "up_all_zero"}  # legal, and told: see the notes and `has_effect`
    assert loads < set(names)
    for name in names:
        path = folder / f"{name}.safetensors"
        if name in loads:
            read_adapter(path, reference_shapes)
            continue
        with pytest.raises(CheckpointError) as error:
            read_adapter(path, reference_shapes)
        assert "\n" not in str(error.value)
