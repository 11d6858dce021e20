"""Scenes with their captions as numbers, drawn by other processes while the autoencoder trains.

A card trains faster than one process can put scenes into words. So workers draw both from numbered seeds,
and what they send is all that training needs: a table of scenes, and the captions' token ids.
"""

import multiprocessing
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..noise import seeded
from .captions import caption
from .painting import COLUMNS, table_of
from .scenes import Scene, choose, training_scene, usual_scene
from .vocabulary import Tokenizers

CHUNK = 1024  # scenes that a worker draws at a time
CAPTIONS = 8  # of a scene, each in other words
LENGTH = 32  # tokens of a caption, with start and end; no caption is longer
USUAL = 0.3  # share of scenes that a caption may say little of; most captions of these do
BRIEF = (0.15, 0.75)  # share of captions that say little, of other scenes and of usual ones

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]


class Bank:
    """Scenes and captions, as many as there are by now.

    Attributes:
        tables: (capacity, 9), int8, on the device; the first `len(bank)` rows are drawn.
        clip: token ids of CLIP-G, (capacity, CAPTIONS, LENGTH), int16; CLIP-L's differ in their pads alone.
        t5: those of T5, likewise.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity = -(-capacity // CHUNK) * CHUNK
        self.tables = torch.zeros(self.capacity, COLUMNS, dtype=torch.int8, device=device)
        shape = (self.capacity, CAPTIONS, LENGTH)
        self.clip, self.t5 = (torch.zeros(shape, dtype=torch.int16, device=device) for _ in range(2))
        self.waiting: list[Future[Chunk]] = []
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def fill(self, scenes: int = 0) -> None:
        """Take in what has arrived, and wait until there are at least so many scenes, or all of them."""
        while self.waiting and (len(self) < scenes or self.waiting[0].done()):
            try:
                table, clip, t5 = (torch.from_numpy(part) for part in self.waiting.pop(0).result())
            except BrokenProcessPool:
                if not len(self):
                    raise
                # A worker was killed, perhaps for lack of memory. What has arrived is enough to go on.
                warnings.warn(f"drawing of captions ended early, with {len(self)} scenes", stacklevel=2)
                self.waiting.clear()
                return
            rows = slice(len(self), len(self) + len(table))
            self.tables[rows], self.clip[rows], self.t5[rows] = (
                part.to(self.tables.device, non_blocking=True) for part in (table, clip, t5)
            )
            self._filled = rows.stop


@contextmanager
def filling(
    capacity: int, tokenizers: Path, *, seed: int, workers: int, device: torch.device
) -> Iterator[Bank]:
    """A bank that `workers` processes are filling."""
    bank = Bank(capacity, device)
    # Not forked: a process that has begun to use a card cannot be.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        bank.waiting = [
            pool.submit(draw_chunk, seed, number, tokenizers) for number in range(bank.capacity // CHUNK)
        ]
        yield bank
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def draw_chunk(seed: int, number: int, tokenizers: Path) -> Chunk:
    """Draw one chunk: scenes (CHUNK, 9), and ids of CLIP-G and T5, (CHUNK, CAPTIONS, LENGTH) each."""
    generator = seeded(seed, 21, number)
    scenes: list[Scene] = []
    texts: list[str] = []
    for _ in range(CHUNK):
        is_usual = bool(torch.rand((), generator=generator) < USUAL)
        scene = (
            usual_scene(generator)
            if is_usual
            else training_scene(generator, shapes=choose((1, 2), generator))
        )
        brief = torch.rand(CAPTIONS, generator=generator) < BRIEF[is_usual]
        scenes.append(scene)
        texts += [caption(scene, generator, brief=one) for one in brief.tolist()]
    _, clip, t5 = Tokenizers(tokenizers).encode(texts, length=LENGTH)
    ids = [part.view(CHUNK, CAPTIONS, LENGTH).short().numpy() for part in (clip, t5)]
    return table_of(scenes).numpy(), ids[0], ids[1]


def _begin() -> None:
    """In a worker: one thread, and behind the process that trains."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.nice(5)
