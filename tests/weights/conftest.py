"""A small model with random weights, written to disk in every layout that is read."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from mmdit import ControlNet, ControlNetConfig, MMDiT, MMDiTConfig
from textenc import CLIP, T5, CLIPConfig, T5Config
from vae import VAE, VAEConfig
from weights.keys import to_theirs
from weights.layouts import CONTROLNET, MMDIT
from weights.layouts import VAE as VAE_LAYOUT
from weights.load_into import Uninitialised
from weights.parts import PREFIXES

State = dict[str, Tensor]
FOLDERS = {
    "mmdit": "transformer",
    "vae": "vae",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "t5": "text_encoder_3",
}
LAYOUTS = {"mmdit": MMDIT, "vae": VAE_LAYOUT, "controlnet": CONTROLNET}


def modules() -> dict[str, nn.Module]:
    """One module per part, with every kind of block."""
    clip = {"vocab_size": 64, "positions": 77, "depth": 2, "mlp_dim": 128}
    return {
        "mmdit": MMDiT(
            MMDiTConfig(
                dim=128,
                depth=3,
                num_heads=2,
                pos_embed_size=8,
                context_dim=96,
                pooled_dim=192,
                dual_blocks=(0, 1),
            )
        ),
        "vae": VAE(VAEConfig(channels=(32, 32, 64, 64), num_res_blocks=1, latent_channels=16)),
        "clip_l": CLIP(CLIPConfig(**clip, dim=64, num_heads=1, projection_dim=None, activation="quick_gelu")),
        "clip_g": CLIP(CLIPConfig(**clip, dim=128, num_heads=2, projection_dim=128, activation="gelu")),
        "t5": T5(T5Config(vocab_size=32, dim=256, depth=2, num_heads=4, head_dim=16, mlp_dim=64, buckets=32)),
        "controlnet": ControlNet(ControlNetConfig(dim=128, depth=2, num_heads=2, pooled_dim=192)),
    }


@pytest.fixture(scope="session")
def parts() -> dict[str, State]:
    """Part to its state dict: random, float32, under our keys."""
    generator = torch.Generator().manual_seed(5)
    states = {}
    with torch.device("meta"), Uninitialised():
        built = modules()
    for part, module in built.items():
        states[part] = {
            name: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
            for name, tensor in module.state_dict().items()
        }
    states["controlnet"]["control_type"] = torch.tensor([1], dtype=torch.int32)
    return states


def to_diffusers(part: str, state: Mapping[str, Tensor]) -> State:
    """Store a part as diffusers does: q, k and v apart, halves swapped, 1x1 convolutions as matrices."""
    if part not in LAYOUTS:
        return dict(state)
    stored: State = {}
    recipes, unknown = to_theirs(state, LAYOUTS[part])
    for name, recipe in recipes.items():
        tensor = state[name]
        if len(recipe.sources) == 3:
            stored |= zip(recipe.sources, tensor.chunk(3), strict=True)
        elif recipe.change == "swap":
            stored[recipe.sources[0]] = torch.cat([tensor[len(tensor) // 2 :], tensor[: len(tensor) // 2]])
        elif recipe.change == "conv" and tensor.ndim == 4:
            stored[recipe.sources[0]] = tensor[:, :, 0, 0]
        else:
            stored[recipe.sources[0]] = tensor
    return {name: tensor.contiguous() for name, tensor in (stored | {n: state[n] for n in unknown}).items()}


def prefixed(states: Mapping[str, State], *names: str) -> State:
    """Several parts in one state dict, under the official prefixes."""
    prefixes = {part: prefix for prefix, part in PREFIXES.items()}
    return {prefixes[part] + key: tensor for part in names for key, tensor in states[part].items()}


def write(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write one file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata={"format": "pt"})
    return path


def write_tokenizers(root: Path) -> None:
    """The three tokenizer folders, with vocabularies of single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    for folder in ("tokenizer", "tokenizer_2"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        vocab = {piece: index for index, piece in enumerate(pieces)}
        (root / folder / "vocab.json").write_text(json.dumps(vocab))
        (root / folder / "merges.txt").write_text("#version: 0.2\n")
    (root / "tokenizer_3").mkdir(exist_ok=True)
    unigram = models.Unigram(
        [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -1.0) for c in letters)], 2
    )
    tokenizer = Tokenizer(unigram)
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(root / "tokenizer_3" / "tokenizer.json"))


def write_sharded(folder: Path, stem: str, state: Mapping[str, Tensor], shards: int) -> None:
    """A sharded diffusers component with its index."""
    names = sorted(state)
    weight_map = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        write(folder / file, {name: state[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def write_official(root: Path, states: Mapping[str, State]) -> Path:
    """The layout of Stability's repositories."""
    write(root / "sd3.5_small.safetensors", prefixed(states, "mmdit", "vae"))
    write(root / "text_encoders" / "clip_l.safetensors", states["clip_l"])
    write(root / "text_encoders" / "clip_g.safetensors", states["clip_g"])
    twice = states["t5"] | {"encoder.embed_tokens.weight": states["t5"]["shared.weight"].clone()}
    write(root / "text_encoders" / "t5xxl_fp16.safetensors", twice)
    write_tokenizers(root)
    return root


def write_diffusers(root: Path, states: Mapping[str, State]) -> Path:
    """The layout that diffusers writes, with the MM-DiT and T5 in shards."""
    (root / "model_index.json").parent.mkdir(parents=True, exist_ok=True)
    (root / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    for part, folder in FOLDERS.items():
        stem = "model" if "text" in folder else "diffusion_pytorch_model"
        stored = to_diffusers(part, states[part])
        if part == "clip_l":
            stored["text_projection.weight"] = torch.eye(64)
        if part in ("mmdit", "t5"):
            (root / folder).mkdir()
            write_sharded(root / folder, stem, stored, 2)
        else:
            write(root / folder / f"{stem}.safetensors", stored)
            write(root / folder / f"{stem}.fp16.safetensors", {k: v.half() for k, v in stored.items()})
        (root / folder / "config.json").write_text(
            json.dumps({"num_attention_heads": 2} if part == "clip_g" else {})
        )
    write_tokenizers(root)
    return root


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, State]) -> Path:
    """An official folder; not to be changed."""
    return write_official(tmp_path_factory.mktemp("official"), parts)


@pytest.fixture(scope="session")
def diffusers(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, State]) -> Path:
    """A diffusers folder; not to be changed."""
    return write_diffusers(tmp_path_factory.mktemp("diffusers"), parts)


@pytest.fixture(scope="session")
def all_in_one(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, State]) -> Path:
    """One file with all five parts, and what training left behind; not to be changed."""
    names = ("mmdit", "vae", "clip_l", "clip_g", "t5")
    leftovers = {
        "loss.logvar": torch.zeros(1),
        "model.model_sampling.sigmas": torch.zeros(3),
        "text_encoders.clip_l.logit_scale": torch.zeros(()),
        "text_encoders.clip_l.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    path = tmp_path_factory.mktemp("single") / "sd3_incl_clips_t5.safetensors"
    return write(path, prefixed(parts, *names) | leftovers)


@pytest.fixture(scope="session")
def writers() -> dict[str, Callable]:
    """The functions above, for tests that write files of their own."""
    return {
        "write": write,
        "prefixed": prefixed,
        "to_diffusers": to_diffusers,
        "official": write_official,
        "tokenizers": write_tokenizers,
        "sharded": write_sharded,
    }
