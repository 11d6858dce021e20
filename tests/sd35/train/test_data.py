import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd35 import SettingsError
from sd35.found import find
from sd35.noise import seeded
from sd35.train.buckets import batches, bucket_sizes, fitted, nearest
from sd35.train.data import Data, cache_of, prepare
from sd35.train.folder import read_folder
from sd35.train.methods import LoraTraining

CPU = torch.device("cpu")


def test_buckets_have_about_the_area_and_no_more() -> None:
    sizes = bucket_sizes(1024, multiple=16, longest=1536)
    assert (1024, 1024) in sizes
    for width, height in sizes:
        assert width % 16 == height % 16 == 0
        assert 0.95 * 1024**2 < width * height <= 1024**2
        assert max(width, height) <= 2 * min(width, height)
        assert (height, width) in sizes
    assert nearest((4000, 3000), sizes) == (1184, 880)
    assert nearest((300, 300), sizes) == (1024, 1024)


def test_a_picture_is_scaled_and_its_middle_kept() -> None:
    image = torch.linspace(-1, 1, 40)[None, None, None].expand(1, 3, 20, 40)
    cut = fitted(image, (32, 32))
    assert cut.shape == (1, 3, 32, 32)
    assert cut[0, 0, 16, [0, 31]].tolist() == pytest.approx([-0.5, 0.5], abs=0.03)
    same = torch.rand(1, 3, 16, 32)
    assert torch.equal(fitted(same, (32, 16)), same)


def test_an_epoch_has_every_picture_in_full_batches_of_one_size() -> None:
    groups = ["a"] * 5 + ["b"]
    epoch = batches(groups, 2, seeded(0))
    assert {index for batch in epoch for index in batch} == set(range(6))
    for batch in epoch:
        assert len(batch) == 2
        assert len({groups[index] for index in batch}) == 1
    assert batches(groups, 2, seeded(0)) == epoch != batches(groups, 2, seeded(1))


@pytest.fixture
def data(model_folder, pictures, cache) -> Data:
    training = LoraTraining(batch_size=2, caption_dropout=0.5, flip=True, resolution=64)
    found = find(model_folder)
    examples, _ = read_folder(pictures)
    return prepare(found, examples, training, cache_of(cache, found, torch.float32), CPU)


def test_a_batch_depends_on_its_number_alone(data) -> None:
    first = [data.batch(number) for number in range(8)]
    for number in (5, 0, 7):
        again = data.batch(number)
        assert torch.equal(again.latents, first[number].latents)
        assert torch.equal(again.context, first[number].context)
        assert again.captions == first[number].captions
    assert {tuple(batch.latents.shape) for batch in first} == {(2, 16, 8, 8), (2, 16, 6, 10)}


def test_a_dropped_caption_is_the_empty_text(data, pipe) -> None:
    empty = pipe.encode_prompt("")
    seen = [
        (caption, batch.context[row])
        for n in range(8)
        if (batch := data.batch(n))
        for row, caption in enumerate(batch.captions)
    ]
    dropped = [context for caption, context in seen if not caption]
    assert 0 < len(dropped) < len(seen)
    for context in dropped:
        assert torch.allclose(context, empty.context[0], atol=1e-5)


@torch.no_grad()
def test_latents_are_those_of_the_autoencoder_and_mirrored_ones_of_the_mirrored_picture(data, pipe) -> None:
    from vae.image import read

    sample = data.samples[0]
    image = fitted(read(sample.example.path), sample.size)
    plain, mirrored = (data.cache.read(key)["latents"] for key in sample.latents)
    assert torch.allclose(plain, pipe.encode(image), atol=1e-5)
    assert torch.allclose(mirrored, pipe.encode(image.flip(3)), atol=1e-5)


def test_a_cache_that_is_damaged_or_of_another_model_is_refused(model_folder, pictures, tmp_path) -> None:
    found, training = find(model_folder), LoraTraining()
    examples, _ = read_folder(pictures)
    prepare(found, examples, training, cache_of(tmp_path, found, None), CPU)
    with pytest.raises(SettingsError, match="holds what another model, or other settings, made"):
        prepare(found, examples, training, cache_of(tmp_path, found, torch.bfloat16), CPU)
    victim = next((tmp_path / "latents").iterdir())
    victim.write_bytes(victim.read_bytes()[:-4])
    with pytest.raises(
        SettingsError, match=f"{victim.name} cannot be read .*: remove it, and it is made again"
    ):
        prepare(found, examples, training, cache_of(tmp_path, found, None), CPU)
    save_file({"latents": torch.zeros(1)}, victim)
    with pytest.raises(SettingsError, match="another model"):
        prepare(found, examples, training, cache_of(tmp_path, found, None), CPU)
    assert math.prod(load_file(victim)["latents"].shape) == 1
