"""Levels of memory give the same bits where they say so, and need what they say."""

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sd35
from mmdit import InTurn, MMDiT, MMDiTConfig, OnDemand, position_table
from mmdit.blocks import AdaLN
from sd35 import SettingsError
from sd35.found import find
from sd35.loading import load_found
from sd35.memory import PLANS, Needs, Plan, choose, free_memory, keep_blocks, levels_asked
from sd35.memory.plan import GB, SPARE
from sd35.tasks.generate import Generate, Generation
from textenc.by_layers import by_layers
from vae import VAEConfig
from vae.tiling import encode_tiled

MEDIUM = MMDiTConfig(
    dim=1536,
    depth=24,
    num_heads=24,
    pos_embed_size=384,
    context_dim=4096,
    pooled_dim=2048,
    dual_blocks=tuple(range(13)),
)
CARD = torch.device("cuda")
BLOCKS = {"blocks": 4_447_389_952, "block": 203_013_888}


def needs(pixels: int = 1024 * 1024) -> Needs:
    sizes = {"mmdit": 4.94, "vae": 0.17, "clip_l": 0.25, "clip_g": 1.39, "t5": 9.52}
    weights = {part: GB * size for part, size in sizes.items()}
    options = {"itemsize": 2, "pixels": pixels, "streamed": 0.65 * GB, **BLOCKS}
    return Needs(weights=weights, mmdit=MEDIUM, vae=VAEConfig((128, 256, 512, 512), 2, 16), **options)


@pytest.fixture(scope="module")
def usual(model_folder) -> sd35.Pipeline:
    """Without a plan; its positions differ, as those of trained models do."""
    pipe = sd35.load(model_folder)
    pipe.mmdit.pos_embed.copy_(position_table(pipe.mmdit.config.dim, pipe.mmdit.config.pos_embed_size))
    return pipe


OPTIONS = {"steps": 4, "seed": 1, "width": 64, "height": 64}


@pytest.mark.parametrize(
    "given",
    [
        {"images_per_prompt": 2},
        {"solver": "heun", "guidance": sd35.Guidance(interval=(0.2, 0.8))},
        {"solver": "sde", "guidance_scale": 1.0},
        {"batch_size": 2, "images_per_prompt": 3},
    ],
    ids=lambda given: ", ".join(given),
)
def test_modulation_first_draws_the_same_bits_and_gives_the_layers_back(usual, given, monkeypatch) -> None:
    expected = usual.generate("a red circle", **OPTIONS, **given)
    before = list(usual.mmdit.parameters())
    pipe = replace(usual, plan=Plan(release=True))
    generation = Generation(pipe, Generate.of("a red circle", OPTIONS | given, variant=usual.variant))
    seen, run = set[int](), generation._guided._run
    table, sizes = pipe.mmdit.pos_embed, set[int]()

    def look(*args: Any) -> Tensor:
        seen.add(layers_of(pipe.mmdit))
        sizes.add(pipe.mmdit.pos_embed.shape[1])
        return run(*args)

    monkeypatch.setattr(generation._guided, "_run", look)
    drawn = generation.run()
    assert seen == {0}
    assert sizes == {4 * 4} != {table.shape[1]}
    assert pipe.mmdit.pos_embed is table
    assert layers_of(pipe.mmdit) > 0
    assert torch.equal(drawn.latents, expected.latents)
    assert torch.equal(drawn.image, expected.image)
    assert all(a is b for a, b in zip(pipe.mmdit.parameters(), before, strict=True))


def layers_of(mmdit: MMDiT) -> int:
    """How many layers give modulation vectors."""
    return sum(isinstance(module, AdaLN) for module in mmdit.modules())


@pytest.mark.parametrize("watched", [True, False])
def test_layers_stay_where_they_are_asked_otherwise(usual, watched) -> None:
    """A hook is on the layer itself; and a solver that chooses its levels has no table of them."""
    pipe = replace(usual, plan=Plan(release=True))
    layer, seen = pipe.mmdit.joint_blocks[0].x_block.adaLN_modulation, []
    handle = layer.register_forward_hook(lambda *_: seen.append(1)) if watched else None
    solver = {"solver": "euler"} if watched else {"solver": "dopri5", "solver_options": {"rtol": 3.0}}
    options = OPTIONS | solver
    drawn = pipe.generate("a red circle", **options)
    if handle is not None:
        handle.remove()
    assert len(seen) == 4 * watched
    assert torch.equal(drawn.image, usual.generate("a red circle", **options).image)


def test_levels_that_a_solver_asks_for() -> None:
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    assert levels_asked("euler", sigmas, {}).tolist() == [1.0, 0.5]
    assert levels_asked("sde", sigmas, {}).tolist() == [1.0, 0.5]
    assert levels_asked("midpoint", sigmas, {}).tolist() == [1.0, 0.75, 0.5, 0.25]


def test_low_and_lowest_on_a_cpu(model_folder, pipe) -> None:
    """Here nothing is moved; equal bits, and tiles where the picture is larger than one."""
    prompts = ["a", "a much longer prompt"]
    expected = pipe.generate(prompts, steps=1)
    for level in ("low", "lowest"):
        frugal = sd35.load(model_folder, memory=level)
        assert torch.equal(frugal.generate(prompts, steps=1).image, expected.image)
        assert frugal.plan == Plan(one_by_one=True, tile=PLANS[level].tile)
        assert frugal.offloaded is None
        assert frugal.notes[0].startswith(f"memory {level}: text encoders one by one")
    tiled = replace(pipe, plan=Plan(tile=2)).generate(prompts, steps=1)
    assert torch.equal(tiled.latents, expected.latents)
    assert not torch.equal(tiled.image, expected.image)
    assert tiled.settings.made_with["tile"] == "2"
    image = expected.image[:1]
    encoded = replace(pipe, plan=Plan(tile=2)).encode(image)
    assert torch.equal(encoded, encode_tiled(pipe.vae, image, tile=2, overlap=0))
    assert not torch.equal(encoded, pipe.encode(image))
    with pytest.raises(SettingsError, match="memory must be one of auto, off, low, lower, lowest"):
        sd35.load(model_folder, memory="least")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("level", ["low", "lowest"])
def test_blocks_are_on_the_device_while_they_draw_alone(usual, level, monkeypatch) -> None:
    """The CPU stands for the device: what is there is a copy."""
    expected = usual.generate("a red circle", **OPTIONS)
    pipe = copy.copy(usual)
    own = [one.data_ptr() for one in pipe.mmdit.joint_blocks.parameters()]
    pipe.plan = replace(PLANS[level], one_by_one=False, tile=None)
    pipe.offloaded = keep_blocks(pipe.mmdit, pipe.plan, torch.device("cpu"))
    seen: dict[str, int] = {}

    def look(name: str) -> None:
        here = [one.data_ptr() for one in pipe.mmdit.joint_blocks.parameters()]
        seen[name] = sum(one not in own for one in here)

    for name, part in {"reading": pipe.text.t5, "drawing": pipe.mmdit.joint_blocks[0].attention}.items():
        monkeypatch.setattr(part, "forward", watched(part.forward, look, name))
    monkeypatch.setattr(pipe, "decode", watched(pipe.decode, look, "decoding"))
    for _ in range(2):
        drawn = pipe.generate("a red circle", **OPTIONS)
        assert torch.equal(drawn.image, expected.image)
        assert torch.equal(drawn.latents, expected.latents)
    assert seen["reading"] == 0
    assert 0 < seen["drawing"] < (40 if level == "lowest" else len(own))
    assert (seen["decoding"] == 0) == (level == "lowest")
    pipe.to("cpu")
    assert pipe.offloaded is None
    assert [one.data_ptr() for one in usual.mmdit.joint_blocks.parameters()] == own


def test_weights_that_are_widened_visit_too_and_are_gone_after_it(model_folder) -> None:
    pipe = sd35.load(model_folder, dtype=torch.bfloat16)
    expected = pipe.invert(
        pipe.generate("a", steps=1).state(), method="naive", precision="float32", measure=False
    )
    weights, own = dict(pipe.mmdit.joint_blocks.named_parameters()), dict[str, int]()
    own |= {name: one.data_ptr() for name, one in weights.items()}
    pipe.offloaded = keep_blocks(pipe.mmdit, PLANS["low"], torch.device("cpu"))
    drawn = pipe.generate("a", steps=1)
    found = pipe.invert(drawn.state(), method="naive", precision="float32", measure=False)
    assert torch.equal(found.noise, expected.noise)
    assert pipe.offloaded is not None
    pipe.offloaded.leave()
    assert {name: one.data_ptr() for name, one in weights.items()} == own
    pipe.to(dtype=torch.float32)
    assert pipe.offloaded is None
    assert {one.dtype for one in weights.values()} == {torch.float32}


def watched(run: Any, look: Any, name: str) -> Any:
    """A function before which somebody looks."""

    def both(*args: Any, **options: Any) -> Any:
        look(name)
        return run(*args, **options)

    return both


@pytest.mark.parametrize("level", ["low", "lowest"])
def test_what_is_loaded_for_a_device_leaves_the_blocks_on_the_cpu(model_folder, level) -> None:
    """torch's meta device stands for a card, as far as to where everything is."""
    pipe = load_found(find(model_folder), "meta", memory=level)
    mmdit = pipe.mmdit
    places = {name.startswith("joint_blocks"): one.device.type for name, one in mmdit.named_parameters()}
    assert places == {True: "cpu", False: "meta"}
    assert pipe.device.type == pipe.vae.decoder.conv_in.weight.device.type == "meta"
    kinds = {"low": (OnDemand, "on the CPU meanwhile"), "lowest": (InTurn, "the transformer block by block")}
    assert isinstance(pipe.offloaded, kinds[level][0])
    assert kinds[level][1] in pipe.notes[0]
    kept, own = (one.mmdit.joint_blocks.state_dict() for one in (pipe, sd35.load(model_folder)))
    assert all(torch.equal(kept[name], tensor) for name, tensor in own.items())


def test_t5_by_layers_gives_the_same_bits_and_stays_where_it_was(pipe) -> None:
    model, ids = copy.deepcopy(pipe.text.t5), torch.tensor([[1, 5, 7]])
    expected, layer = model(ids), model.encoder.block[0]
    own, seen = [one.data_ptr() for one in layer.parameters()], []
    assert by_layers(model, "cpu") is model
    layer.layer[0].register_forward_hook(lambda *_: seen.extend(one.data_ptr() for one in layer.parameters()))
    assert torch.equal(model(ids), expected)
    assert not set(seen) & set(own)
    assert [one.data_ptr() for one in layer.parameters()] == own


def test_needs_are_those_of_the_documentation() -> None:
    """docs/speed.md, from benchmarks/peaks.py, for SD3.5-medium in bfloat16."""
    medium = needs()
    assert medium.step / GB == pytest.approx(0.59, abs=0.02)
    assert needs(512 * 512).step / GB == pytest.approx(0.15, abs=0.02)
    assert medium.decode(None) / GB == pytest.approx(1.61, abs=0.01)
    assert medium.decode(64) / GB == pytest.approx(0.40, abs=0.01)
    with torch.device("meta"):
        model = MMDiT(MEDIUM)
    modulation = [module for module in model.modules() if isinstance(module, AdaLN)]
    sizes = [2 * sum(one.numel() for one in block.parameters()) for block in model.joint_blocks]
    assert (sum(sizes), max(sizes)) == (medium.blocks, medium.block)
    weights = sum(one.numel() for module in modulation for one in module.parameters() if one.ndim == 2)
    assert medium.modulation == 2 * weights
    assert medium.positions == 2 * (384**2 - 64**2) * MEDIUM.dim
    peaks = [round(medium.peak(PLANS[level]) / GB, 1) for level in PLANS]
    assert peaks == [17.9, 10.2, 4.7, 2.1]


def test_auto_takes_the_first_that_fits() -> None:
    medium = needs()
    peaks = [medium.peak(plan) for plan in PLANS.values()]
    assert all(before > after for before, after in pairwise(peaks))
    for name, peak in zip(PLANS, peaks, strict=True):
        plan, notes = choose("auto", medium, CARD, peak + SPARE)
        assert plan == PLANS[name]
        assert len(notes) == (name != "off")
    assert choose("auto", medium, CARD, GB)[0] == PLANS["lowest"]
    assert choose("auto", medium, CARD, None) == (Plan(), ())
    assert "4.75 GB in place of 17.9; 8 GB are free" in choose("auto", medium, CARD, 8 * GB)[1][0]


def test_free_memory_is_told_where_it_is_known() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 0
    assert free_memory(torch.device("meta")) is None
