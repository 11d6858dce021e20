"""A block belongs to the thread, or the context, that opened it."""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sd35.taps import TapError, capture, patch

TAP = "joint_blocks.1.x"


def in_another_thread(run: Callable):
    """What `run` returns, run in a thread of its own and waited for."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def test_a_patch_of_one_thread_leaves_the_others_alone(model, inputs):
    before = model(*inputs())
    with patch(model, {TAP: torch.zeros_like}):
        assert torch.equal(in_another_thread(lambda: model(*inputs())), before)
        assert not torch.equal(model(*inputs()), before)


def test_a_capture_of_one_thread_records_what_that_thread_runs(model, inputs):
    with capture(model, TAP) as taps:
        in_another_thread(lambda: model(*inputs(1)))
        model(*inputs(0))
    with capture(model, TAP) as alone:
        model(*inputs(0))
    assert torch.equal(taps[TAP], alone[TAP])
    with pytest.raises(TapError, match="by the thread that opened it"), capture(model, TAP):
        in_another_thread(lambda: model(*inputs()))


def test_threads_at_the_same_time_on_one_model(model, inputs):
    """Blocks open and close in four threads while the others run: each sees its own, and nothing stays."""
    alone = {}
    for factor in range(1, 5):
        with patch(model, {TAP: lambda x, factor=factor: factor * x}), capture(model, TAP) as taps:
            alone[factor] = model(*inputs(factor))
        alone[factor, "taps"] = taps[TAP]
    start = threading.Barrier(4)

    def run(factor: int) -> bool:
        start.wait()
        same = []
        for _ in range(4):
            with patch(model, {TAP: lambda x: factor * x}), capture(model, TAP) as taps:
                same.append(torch.equal(model(*inputs(factor)), alone[factor]))
            same.append(torch.equal(taps[TAP], alone[factor, "taps"]))
        return all(same)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(1, 5)))


def test_a_context_that_is_taken_along_takes_its_blocks_along(model, inputs):
    with capture(model, TAP) as taps:
        context = contextvars.copy_context()
        in_another_thread(lambda: context.run(model, *inputs()))
    assert TAP in taps


def test_blocks_that_close_in_another_order_close_themselves_alone(model, inputs):
    def steps(factor: float):
        with patch(model, {TAP: lambda x: factor * x}):
            yield model(*inputs())
            yield model(*inputs())

    before = model(*inputs())
    first, second = steps(2.0), steps(3.0)
    next(first), next(second)
    first.close()
    tripled = next(second)
    second.close()
    with patch(model, {TAP: lambda x: 3.0 * x}):
        assert torch.equal(model(*inputs()), tripled)
    assert torch.equal(model(*inputs()), before)
