"""Scenes with captions as token ids."""

import numpy as np
import torch

from sd35.noise import seeded
from sd35.tiny import bank
from sd35.tiny.captions import caption
from sd35.tiny.scenes import is_held_out, training_scene, usual_scene
from sd35.tiny.vocabulary import Tokenizers

CPU = torch.device("cpu")


def test_a_chunk_is_a_function_of_its_number_and_reads_as_the_tokenizers_do(folder, monkeypatch) -> None:
    monkeypatch.setattr(bank, "CHUNK", 16)
    said: list[str] = []
    monkeypatch.setattr(
        bank, "caption", lambda *args, **kwargs: said.append(caption(*args, **kwargs)) or said[-1]
    )
    table, clip, t5 = bank.draw_chunk(0, 3, folder)
    expected = Tokenizers(folder).encode(said, length=bank.LENGTH)
    assert np.array_equal(clip.reshape(-1, bank.LENGTH), expected[1])
    assert np.array_equal(t5.reshape(-1, bank.LENGTH), expected[2])
    again, other = bank.draw_chunk(0, 3, folder), bank.draw_chunk(0, 4, folder)
    assert all(np.array_equal(one, two) for one, two in zip((table, clip, t5), again, strict=True))
    assert not np.array_equal(table, other[0])


def test_no_scene_is_held_out(folder, monkeypatch) -> None:
    monkeypatch.setattr(bank, "CHUNK", 200)
    drawn = []
    for name, draw in (("usual_scene", usual_scene), ("training_scene", training_scene)):
        monkeypatch.setattr(
            bank, name, lambda *args, draw=draw, **kwargs: drawn.append(draw(*args, **kwargs)) or drawn[-1]
        )
    bank.draw_chunk(1, 0, folder)
    assert len(drawn) == 200
    assert not any(is_held_out(scene) for scene in drawn)
    assert 0.3 < sum(len(scene.shapes) == 1 for scene in drawn) / len(drawn) < 0.7


def test_no_caption_is_longer_than_there_is_room(folder) -> None:
    generator = seeded(5)
    texts = [caption(training_scene(generator, shapes=2), generator) for _ in range(3000)]
    Tokenizers(folder).encode(texts, length=bank.LENGTH)


def test_workers_fill_a_bank(folder) -> None:
    with bank.filling(1, folder, seed=0, workers=1, device=CPU) as filled:
        assert len(filled) == 0
        filled.fill(1)
        assert len(filled) == filled.capacity == bank.CHUNK
        assert filled.clip[-1].any()
        filled.fill(10**9)  # there is no more
        assert len(filled) == bank.CHUNK
