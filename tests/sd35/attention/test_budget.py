"""What maps and their computing take of memory is known before, and kept."""

from contextlib import contextmanager
from math import prod
from weakref import finalize

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sd35.attention import attention_maps
from sd35.attention.quadrants import QUADRANTS, Grid, part_shape
from sd35.attention.record import WORKSPACE
from sd35.attention.softmax import CHUNK_BYTES, attention_rows
from sd35.taps import BudgetError

PROMPT = "a red circle above a blue square"
M = 154  # text tokens


def test_a_budget_is_kept_before_anything_is_computed(mmdit, pipe):
    needed = 3 * 4 * 2 * 12 * M + WORKSPACE
    with attention_maps(mmdit, budget=needed) as maps:
        pipe.generate(PROMPT, steps=2)
    assert maps.nbytes + WORKSPACE == needed
    with (
        pytest.raises(BudgetError, match=r"one image, recording takes .*fewer blocks") as error,
        attention_maps(mmdit, budget=needed - 1) as maps,
    ):
        pipe.generate(PROMPT, steps=2)
    assert not maps.totals
    assert "128.0 MiB" in str(error.value)
    with (
        pytest.raises(BudgetError, match="with another map"),
        attention_maps(mmdit, keep=["step"], budget=needed),
    ):
        pipe.generate(PROMPT, steps=2)


def test_sd35_medium_at_its_full_size_fits_two_gib():
    """24 blocks at 1024 x 1024 with the longest usual context, by calculation: all four quadrants, whole."""
    grid, text = Grid(64, 64, 1), 333
    whole = 24 * sum(4 * prod(part_shape(part, grid, text)) for part in QUADRANTS)
    default = 24 * sum(4 * prod(part_shape(part, grid, text)) for part in ("image-text", "text-image"))
    assert default < whole < whole + WORKSPACE < 2 * 2**30
    keys = 24 * (text + 4096) * 64 * 4  # float32, one image; beside them the same in the model's dtype
    assert 2 * CHUNK_BYTES + 2 * keys + 2 * CHUNK_BYTES // 24 < WORKSPACE


def test_memory_as_measured():
    """What is alive at once while rows are computed: a chunk, the keys in float32, and small change."""
    q = torch.randn(8, 1024, 64, generator=torch.Generator().manual_seed(0))
    keys = q.numel() * 4
    with live_bytes() as live:
        for _, rows in attention_rows(q, q, chunk_bytes=2**20):
            del rows
    assert 2**20 < live["peak"] < 2**20 + keys + 2**18  # a 20th of the whole map


@contextmanager
def live_bytes():
    """Counts the bytes of storages that operations inside the block make and keep."""
    counts = {"now": 0, "peak": 0}
    seen: set[int] = set()

    def drop(address: int, size: int) -> None:
        seen.discard(address)
        counts["now"] -= size

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            given = {t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if not isinstance(tensor, torch.Tensor):
                    continue
                storage = tensor.untyped_storage()
                if storage._cdata in given or storage._cdata in seen:
                    continue
                seen.add(storage._cdata)
                counts["now"] += storage.nbytes()
                counts["peak"] = max(counts["peak"], counts["now"])
                finalize(storage, drop, storage._cdata, storage.nbytes())
            return out

    with Watch():
        yield counts
