"""Rows of attention against the softmax written out."""

import pytest
import torch

from sd35.attention.softmax import CHUNK_BYTES, attention_rows


def explicit(q, k):
    return torch.softmax(q.double() @ k.double().transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)


@pytest.mark.parametrize("chunk_bytes", [1, 3 * 2 * 17 * 4, CHUNK_BYTES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_an_explicit_softmax(chunk_bytes, dtype):
    generator = torch.Generator().manual_seed(0)
    q, k = (3 * torch.randn(2, length, 8, generator=generator).to(dtype) for length in (10, 17))
    whole = torch.zeros(2, 10, 17)
    for rows, probabilities in attention_rows(q, k, chunk_bytes=chunk_bytes):
        whole[:, rows] += probabilities
    torch.testing.assert_close(whole, explicit(q, k).float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(whole.sum(dim=-1), torch.ones(2, 10))


def test_large_logits_do_not_overflow():
    q = torch.full((1, 2, 4), 1e4)
    ((_, rows),) = attention_rows(q, torch.stack([q[0, 0], -q[0, 0]])[None])
    assert torch.equal(rows[0], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_chunks_keep_to_their_size():
    q = torch.zeros(4, 100, 8)
    chunks = [rows.numel() * 4 for _, rows in attention_rows(q, q, chunk_bytes=10_000)]
    assert max(chunks) <= 10_000
    assert len(chunks) == 17  # of 6 rows at most
