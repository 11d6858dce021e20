"""What a call costs."""

import sys
import time

import pytest
import torch

from sd35.bench import clock
from sd35.bench.clock import alternate, peak_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(("enough", "rounds"), [(0.0, 3), (60.0, 9)], ids=["long calls", "short calls"])
def test_calls_are_taken_in_turn_after_two_of_each(enough, rounds, monkeypatch) -> None:
    monkeypatch.setattr(clock, "ENOUGH", enough)
    calls: list[str] = []
    timings = alternate([lambda: calls.append("a"), lambda: calls.append("b")], 3, CPU)
    assert "".join(calls) == "ab" + "ab" + ("abba" * rounds)[: 2 * rounds]
    assert [len(timing.wall) for timing in timings] == [rounds, rounds]


def test_another_process_is_called_as_often_as_it_is_timed(monkeypatch) -> None:
    monkeypatch.setattr(clock, "ENOUGH", 0.0)
    calls: list[str] = []
    (timing,) = alternate([lambda: calls.append("a")], 2, CPU, warm=False)
    assert len(calls) == 2
    assert timing.peak is None


def test_sleeping_takes_the_wall_and_not_the_processor() -> None:
    (timing,) = alternate([lambda: time.sleep(0.02)], 1, CPU, warm=False)
    assert timing.wall[0] >= 0.02
    assert timing.seconds == timing.cpu[0] < timing.wall[0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's peak anew")
def test_memory_that_was_given_back_is_counted() -> None:
    size, parts = 2**26, 64

    def run() -> object:  # pieces small enough for the allocator to keep when they are freed
        return [torch.ones(size // parts, dtype=torch.uint8) for _ in range(parts)]

    for _ in range(2):
        peak = peak_bytes(run, CPU)
        assert peak is not None
        assert size * 0.9 < peak < 1.5 * size
