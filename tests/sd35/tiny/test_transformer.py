"""What the transformer's training is made of."""

from pathlib import Path

import pytest
import torch

from sd35.noise import seeded
from sd35.tiny import bank as banks
from sd35.tiny import transformer
from sd35.tiny.bank import Bank
from sd35.tiny.fit import Plan, Trainer
from sd35.tiny.painter import Painter
from sd35.tiny.transformer import (
    LONG,
    PADDED,
    PADDED_FROM,
    SHORT,
    Latents,
    draw_batch,
    is_hidden,
    lengths_at,
    loss_of,
    padded_ids,
)
from sd35.tiny.vocabulary import Tokenizers

CPU = torch.device("cpu")


@pytest.fixture
def latents(folder: Path, monkeypatch) -> Latents:
    """Of 32 scenes, encoded by a mean over cells."""
    monkeypatch.setattr(banks, "CHUNK", 32)
    bank = Bank(32, CPU)
    parts = (torch.from_numpy(part) for part in banks.draw_chunk(0, 0, folder))
    bank.tables[:], bank.clip[:], bank.t5[:] = parts
    bank._filled = 32
    encoded = Latents(
        bank, lambda image: torch.nn.functional.avg_pool2d(image, 8).repeat(1, 6, 1, 1)[:, :16], seeded(1)
    )
    encoded.renew(20)
    assert encoded.filled == 20
    encoded.renew(20)  # the rest, and no more
    assert encoded.filled == 32
    return encoded


def test_pictures_are_encoded_as_scenes_arrive_and_while_there_is_time(monkeypatch) -> None:
    bank = Bank(1024, CPU)
    asked: list[int] = []

    def arrive(scenes: int) -> None:
        asked.append(scenes)
        bank._filled = min(scenes, 768)  # drawing ends early

    monkeypatch.setattr(bank, "fill", arrive)
    monkeypatch.setattr(transformer, "paint_at_random", lambda tables, *_, **__: torch.zeros(len(tables), 1))
    values = Latents(bank, lambda image: torch.zeros(len(image), 16, 16, 16), seeded(1))
    values.fill(512, until=5.0, left=lambda: 4.0)  # no time: the first ones all the same
    assert (values.filled, asked) == (256, [256])
    values.fill(512, until=5.0, left=lambda: 6.0)
    assert (values.filled, asked) == (512, [256, 512])
    values.fill(1024, until=5.0, left=lambda: 6.0)
    assert (values.filled, asked) == (768, [256, 512, 768, 1024])


def test_a_dropped_encoder_leaves_zeros() -> None:
    painter = Painter(50, 40, seeded(0))
    ids = [torch.tensor([[48, 3, 49], [48, 4, 49]])] * 2 + [torch.tensor([[5, 1], [6, 1]])]
    keep = torch.tensor([[True, False], [True, True], [False, True]])
    with torch.no_grad():
        context, pooled = painter.encode(ids, keep)
    assert context.shape == (2, 5, 256)
    assert pooled.shape == (2, 192)
    zero = {
        "CLIP-L": context[:, :3, :64].abs().amax((1, 2)) == 0,
        "CLIP-G": context[:, :3, 64:192].abs().amax((1, 2)) == 0,
        "T5": context[:, 3:].abs().amax((1, 2)) == 0,
        "CLIP-L pooled": pooled[:, :64].abs().amax(1) == 0,
    }
    assert {name: value.tolist() for name, value in zero.items()} == {
        "CLIP-L": [False, True],
        "CLIP-G": [False, False],
        "T5": [True, False],
        "CLIP-L pooled": [False, True],
    }


def test_encoders_give_what_their_own_forwards_give(folder: Path) -> None:
    tokenizers = Tokenizers(folder)
    painter = Painter(tokenizers.clip_size, tokenizers.t5_size, seeded(0))
    ids = tokenizers.encode(["a red ring", "two stars"])
    with torch.no_grad():
        context, pooled = painter.encode(ids, torch.ones(3, 2))
        outputs = painter.clip_l(ids[0]), painter.clip_g(ids[1])
        assert torch.equal(pooled, torch.cat([output.pooled for output in outputs], dim=1))
        assert torch.equal(context[:, : ids[0].shape[1], :64], outputs[0].penultimate)
        assert torch.equal(context[:, ids[0].shape[1] :], painter.t5(ids[2]))


@pytest.mark.parametrize("lengths", [PADDED, LONG])
def test_ids_are_padded_as_the_tokenizers_pad(folder: Path, lengths: tuple[int, int]) -> None:
    tokenizers = Tokenizers(folder)
    texts = ["a red ring", "a small blue star on the left", "two discs on white"]
    _, clip, t5 = tokenizers.encode(texts, length=banks.LENGTH)
    dropped = torch.tensor([False, True, False])
    kept = [text if not gone else "" for text, gone in zip(texts, dropped, strict=True)]
    found = padded_ids(clip.short(), t5.short(), dropped, tokenizers, lengths)
    for part, ids in enumerate(found):
        assert torch.equal(ids, tokenizers.encode(kept, length=lengths[part > 1])[part])


def test_a_batch_is_of_the_bank_and_can_be_learnt(folder: Path, latents: Latents) -> None:
    tokenizers = Tokenizers(folder)
    painter = Painter(tokenizers.clip_size, tokenizers.t5_size, seeded(0))
    batch = draw_batch(latents, tokenizers, 20, SHORT, seeded(2))
    distance = (batch.data[:, None] - latents.values.float()).square().mean(dim=(2, 3, 4))
    assert distance.amin(dim=1).max() < 0.01  # a row of the bank with a little noise
    assert 0 <= batch.sigma.min() < batch.sigma.max() <= 1
    assert (batch.sigma[:2] >= 0.95).all()
    batch = draw_batch(latents, tokenizers, 6, SHORT, seeded(2))
    trainer = Trainer(painter, Plan(learning_rate=2e-3, warmup=0.1, ema=0.5), is_hidden)
    losses = []
    for step in range(5):
        loss = loss_of(trainer.worker, batch).mean()
        loss.backward()
        trainer.step(0.2 + step / 20)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_muon_trains_the_matrices_of_the_blocks_and_no_others() -> None:
    painter = Painter(50, 40, seeded(0))
    matrices = {name for name, parameter in painter.named_parameters() if parameter.ndim == 2}
    hidden = {name for name, _ in painter.named_parameters() if is_hidden(name)}
    assert hidden <= matrices
    others = ("embed", "adaLN", "relative_attention_bias", "shared", "final_layer", "text_projection")
    assert {name for name in matrices if not any(other in name for other in others)} == hidden


def test_most_batches_are_short_and_the_last_ones_as_a_pipeline_pads() -> None:
    early = [lengths_at(step, 0.5) for step in range(40)]
    assert early.count(SHORT) == 35
    assert early.count(PADDED) == 4
    assert early.count(LONG) == 1
    assert {lengths_at(step, PADDED_FROM + 0.01) for step in range(40)} == {PADDED, LONG}
