"""41 files of every trainer and kind, against what the trainers' own code makes of them in float64."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import weights
from sd35.adapters.lora import add_lora, remove_lora
from textenc import CLIP, CLIPConfig

BASES = {"mmdit": "mmdit_qknorm_dual", "clip_l": "clip_l_like", "clip_g": "clip_g_like", "t5": "t5_like"}
HEADS = {"clip_l": 2, "clip_g": 4}


@pytest.fixture(scope="module")
def base(shared_reference):
    modules = {}
    for part, name in BASES.items():
        stored = load_file(shared_reference / "parity" / f"{name}.safetensors")
        state = {
            key.removeprefix("weights/").removeprefix("model.diffusion_model."): tensor.double()
            for key, tensor in stored.items()
            if key.startswith("weights/")
        }
        if part in HEADS:
            activation = "quick_gelu" if part == "clip_l" else "gelu"
            shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
            config = CLIPConfig.from_shapes(shapes, activation=activation, num_heads=HEADS[part])
            module = CLIP(config)
        else:
            module = {"mmdit": weights.build_mmdit, "t5": weights.build_t5}[part](state)
        module.double().load_state_dict(state)
        modules[part] = module.eval().requires_grad_(False)
    return modules


def effective(modules, keys):
    """Every tensor of the model as it acts, under its official key."""
    for part, module in modules.items():
        for key in keys[part]:
            path, _, leaf = key.rpartition(".")
            yield f"{part}/{key}", getattr(module.get_submodule(path), leaf)


def outputs(modules, inputs, wanted):
    """What the stored outputs are compared with."""
    for name in wanted:
        what = name.removeprefix("out64/").rpartition("_scale")[0]
        if what == "velocity":
            given = (inputs[f"in/{key}"].double() for key in ("x", "timestep", "context", "y"))
            x, timestep, context, pooled = given
            yield name, modules["mmdit"](x, timestep / 1000, context, pooled)
        elif what.startswith("t5"):
            yield name, modules["t5"](inputs["in/t5_ids"])[:1, :16]
        else:
            part, output = what[:6], what[7:]
            out = getattr(modules[part](inputs[f"in/{part}_ids"]), output)
            yield name, out[:1, :16] if out.ndim == 3 else out[:1]


def probe(side, difference, inputs):
    """One of the three forms in which a difference is stored."""
    matrix = difference.flatten(1) if difference.ndim > 1 else difference[:, None]
    if side == "right":
        return matrix @ inputs["probe/right"][: matrix.shape[1]].double()
    return inputs["probe/left"][: matrix.shape[0]].double() @ matrix if side == "left" else difference


@pytest.mark.parametrize(("scale", "merge"), [(1, True), (0.6, False)])
def test_every_case_is_exact(shared_reference, base, scale, merge):
    folder = shared_reference / "adapters"
    inputs = load_file(folder / "inputs.safetensors")
    text = SimpleNamespace(clip_l=base["clip_l"], clip_g=base["clip_g"], t5=base["t5"])
    pipe = SimpleNamespace(mmdit=base["mmdit"], text=text)
    keys = {part: list(module.state_dict()) for part, module in base.items()}  # before anything is put in
    before = {name: tensor.clone() for name, tensor in effective(base, keys)}
    cases = json.loads((folder / "index.json").read_text())["cases"]
    assert len(cases) == 41
    for case in cases:
        expected = load_file(folder / case["expected"])
        add_lora(pipe, folder / case["file"], scale, "case", merge=merge)
        touched = set()
        for name, tensor in effective(base, keys):
            touched |= set() if torch.equal(tensor, before[name]) else {name}
            linear = case["linear"] or scale == 1
            for side in ("right", "left", "vec"):
                stored = expected.get(f"delta{1 if linear else scale}/{name}.{side}")
                if stored is None:
                    continue
                stored = stored.double() * (scale if linear else 1)
                difference = tensor - before[name]
                error = (probe(side, difference, inputs) - stored).abs().max()
                assert error <= 1e-6 * stored.abs().max(), (case["case"], name)
        assert touched == set(case["touched"]), case["case"]
        wanted = [name for name in expected if name.endswith(f"scale{scale}") and name.startswith("out64/")]
        for name, out in outputs(base, inputs, wanted):
            stored = expected[name].double()
            assert (out - stored).abs().max() <= 1e-6 * stored.abs().max(), (case["case"], name)
        remove_lora(pipe, "case")
    assert all(torch.equal(tensor, before[name]) for name, tensor in effective(base, keys))
