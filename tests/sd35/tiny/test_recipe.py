"""Where the training of the embedded model may write, and what it writes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sd35 import SettingsError, load
from sd35.noise import seeded
from sd35.tiny import pieces, recipe
from sd35.tiny.autoencoder import CONFIG
from sd35.tiny.painter import Painter
from sd35.tiny.vocabulary import Tokenizers, write_tokenizers
from vae import VAE

WRITTEN = [
    "sd3.5_tiny.safetensors",
    "text_encoders/clip_g.safetensors",
    "text_encoders/clip_l.safetensors",
    "text_encoders/t5xxl_fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/vocab.json",
    "tokenizer_3/tokenizer.json",
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> Tokenizers:
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder)
    return Tokenizers(folder)


@pytest.fixture(scope="module")
def tensors(tokenizers: Tokenizers) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE(CONFIG)
    return pieces.half(Painter(tokenizers.clip_size, tokenizers.t5_size, seeded(0)), vae)


def test_pieces_are_small_and_join_to_a_model_that_loads(tmp_path: Path, tensors) -> None:
    paths = pieces.write_pieces(tensors, tmp_path / "pieces")
    assert len(paths) <= 2
    assert max(path.stat().st_size for path in paths) < 16_000_000
    pieces.join(tmp_path / "pieces", tmp_path / "model")
    written = (path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*.*"))
    assert sorted(path.as_posix() for path in written) == WRITTEN
    pipe = load(tmp_path / "model")
    assert pipe.size == (128, 128)
    weights = load_file(tmp_path / "model" / "sd3.5_tiny.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    name = "joint_blocks.3.x_block.mlp.fc1.weight"
    assert torch.equal(weights[f"model.diffusion_model.{name}"], tensors[f"mmdit/{name}"])


def test_what_was_written_is_built_again(tmp_path: Path, tensors, tokenizers) -> None:
    pieces.write_pieces(tensors, tmp_path)
    again = pieces.half(*pieces.built(pieces.read_weights(tmp_path), tokenizers))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_a_model_is_read_as_its_pieces_are(tmp_path: Path, tensors) -> None:
    pieces.write_model(tensors, tmp_path)
    again = pieces.read_weights(tmp_path)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    shipped = pieces.read_weights(Path("tiny"))
    assert shipped.keys() == tensors.keys()
    assert {name: one.shape for name, one in shipped.items()} == {
        name: one.shape for name, one in tensors.items()
    }


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"holds neither piece_1\.safetensors nor sd3\.5_tiny"):
        recipe.train(tmp_path / "new", minutes=1, resume=tmp_path)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_no_time_is_refused_before_anything_is_written(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(SettingsError, match="minutes must be a positive number"):
        recipe.train(tmp_path / "new", minutes=minutes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("share", "resume", "match"),
    [(1.0, "tiny", "must be a share of the time"), (0.0, None, "must be above 0 where nothing is resumed")],
)
def test_a_share_that_is_none_is_refused(tmp_path: Path, share, resume, match) -> None:
    with pytest.raises(SettingsError, match=match):
        recipe.train(tmp_path / "new", minutes=1, resume=resume, autoencoder=share)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", ["sd3.5_tiny.safetensors", "notes.txt"])
def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, kept: str) -> None:
    (tmp_path / kept).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        recipe.train(tmp_path, minutes=1)
    assert [path.name for path in tmp_path.iterdir()] == [kept]
