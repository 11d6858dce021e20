"""Recording the attention of the MM-DiT from its queries and keys, while it runs."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch
from torch import Tensor

from mmdit import MMDiT
from textenc import Encoding

from ..evaluation import Branch
from ..taps import BudgetError, TapError
from ..taps.match import near
from ..taps.moment import Moment, Selection
from ..taps.parts import Tap, find_taps
from ..taps.sizes import size
from ..taps.watch import check_watchable, watching
from .maps import AttentionMaps, Key, Total
from .quadrants import ATTN2, PARTS, Grid, add_rows, part_shape
from .softmax import CHUNK_BYTES, attention_rows

GRID_TAP = "x_embedder.proj"  # the patches as a map: tells rows and columns
JOINT_ROLES = ("x_block.attn.ln_q", "x_block.attn.ln_k", "context_block.attn.ln_q", "context_block.attn.ln_k")
ATTN2_ROLES = ("x_block.attn2.ln_q", "x_block.attn2.ln_k")
BUDGET = 2 * 2**30
"""Bytes that recording may take where the caller does not say."""
WORKSPACE = 8 * CHUNK_BYTES
"""What recording takes beside the maps: two chunks of rows, what they are reduced to, and the keys twice."""


def attention_maps(
    mmdit: MMDiT,
    parts: Collection[str] = ("image-text", "text-image"),
    *,
    blocks: Iterable[int] | None = None,
    keep: Collection[Literal["head", "step"]] = (),
    pool: int = 1,
    steps: Iterable[int] | None = None,
    branch: Branch | None = "cond",
    encoding: Encoding | None = None,
    budget: int = BUDGET,
) -> AbstractContextManager[AttentionMaps]:
    """Record where the tokens of the transformer look, while the `with` block runs it.

        with sd35.attention_maps(pipe.mmdit) as maps:
            result = pipe.generate("a red circle above a blue square")
        maps.heatmap("circle")  # (rows, columns) of patches

    The model's own attention never holds its probabilities. Here they are computed again, in float32, a few
    rows at a time, from the queries and keys that go into it, and added up: a map is the mean over all steps
    and heads unless these are kept apart. For all 24 blocks of SD3.5-medium at 1024 x 1024, with a context of
    333 tokens, the default parts take 0.2 GiB and all four quadrants 1.8 GiB; all with "attn2" and pool=2
    take 0.2 GiB.

    Args:
        mmdit: the transformer.
        parts: of the attention: "image-image", "image-text", "text-image" and "text-text", query first, and
            "attn2".
        blocks: numbers of the joint blocks; None is all.
        keep: "head" keeps heads apart, "step" the steps of the solver; each multiplies the memory.
        pool: side of squares of patches that are taken together: averaged as queries, summed as keys.
        steps: which of the solver's steps, inside a generation; None is all.
        branch: which branch of the guidance, inside a generation; None takes the mean of both. Outside of
            one, only None.
        encoding: the prompts of the rows of a batch, outside a generation; inside it they are known.
        budget: bytes that recording may take, beside what the model takes.

    Returns:
        A context manager whose target fills up while the block runs.

    Raises:
        TapError: a part, block, step or branch does not exist, or the model is compiled. At the end of the
            block: nothing was recorded, or a step never came.
        BudgetError: inside the block, before maps beyond the budget are made.
    """
    check_watchable(mmdit)
    for part in parts:
        if part not in PARTS:
            raise TapError(
                f"there is no {part!r} of the attention, only {', '.join(PARTS)}" + near(part, PARTS)
            )
    if wrong := set(keep) - {"head", "step"}:
        raise TapError(f"keep takes 'head' and 'step', got {', '.join(map(repr, wrong))}")
    if pool < 1:
        raise TapError(f"pool must be at least 1, got {pool}")
    depth = mmdit.config.depth
    chosen = list(range(depth)) if blocks is None else sorted(set(blocks))
    check_blocks(chosen, depth)
    recorder = _Recorder(
        tuple(parts),
        frozenset(keep),
        pool,
        Selection(steps, branch),
        encoding,
        budget,
        _roles(mmdit, parts, chosen),
    )
    if not recorder.roles:
        raise TapError(f"there is nothing to record of {', '.join(parts) or 'no part'} in blocks {chosen}")
    return _recording(mmdit, recorder)


def check_blocks(blocks: Iterable[int], depth: int) -> None:
    """Refuse numbers of joint blocks that a transformer of this depth does not have.

    Raises:
        TapError: there is such a number.
    """
    if unknown := sorted(block for block in blocks if not 0 <= block < depth):
        raise TapError(f"blocks must be 0 to {depth - 1}, got {unknown}")


def nbytes_of(numbers: Mapping[str, int], grid: Grid, text: int, *, heads: int = 1) -> int:
    """What the maps of one image take, in bytes.

    Args:
        numbers: part to the number of blocks that it is recorded of.
        grid: of the image tokens.
        text: context tokens.
        heads: that are kept apart.
    """
    cells = {part: prod(part_shape(part, grid, text)) for part in numbers}
    return sum(number * heads * cells[part] * torch.float32.itemsize for part, number in numbers.items())


@contextmanager
def _recording(mmdit: MMDiT, recorder: "_Recorder") -> Iterator[AttentionMaps]:
    taps = find_taps(mmdit)
    with watching([taps[GRID_TAP], *(taps[name] for name in recorder.roles)], recorder.visit):
        yield recorder.maps
    recorder.selection.check_ran([])
    if not recorder.maps.totals:
        raise TapError("no attention was recorded: the transformer did not run for it inside the block")


def _roles(mmdit: MMDiT, parts: Collection[str], blocks: list[int]) -> dict[str, tuple[int, str]]:
    """The taps that are needed, by name: the block, and what the tensor is in its attention."""
    dual = set(mmdit.config.dual_blocks) if ATTN2 in parts else set()
    joint = set(blocks) if set(parts) - {ATTN2} else set()
    return {
        f"joint_blocks.{block}.{role}": (block, role)
        for block in blocks
        for role in (*(JOINT_ROLES if block in joint else ()), *(ATTN2_ROLES if block in dual else ()))
    }


@dataclass
class _Recorder:
    """Collects queries and keys of one attention, computes its rows, and adds them to the maps."""

    parts: tuple[str, ...]
    keep: frozenset[str]
    pool: int
    selection: Selection
    encoding: Encoding | None
    budget: int
    roles: dict[str, tuple[int, str]]
    maps: AttentionMaps = field(default_factory=AttentionMaps)
    pending: dict[str, Tensor] = field(
        default_factory=dict
    )  # by role; of the attention that is being computed

    def visit(self, tap: Tap, tensor: Tensor) -> None:
        """Take note of the patches, or of one query or key."""
        if tap.name == GRID_TAP:
            self.pending.clear()  # a call that an exception ended may have left some
            self.maps.grid = Grid(tensor.shape[-2], tensor.shape[-1], self.pool)
            return
        moments = self.selection.moments()
        if not moments:
            return
        block, role = self.roles[tap.name]
        self.pending[role] = tensor.detach()
        roles = ATTN2_ROLES if role in ATTN2_ROLES else JOINT_ROLES
        if all(one in self.pending for one in roles):
            tensors = [self.pending.pop(one) for one in roles]
            for moment in moments:
                self._record(block, moment, [moment.of(one) for one in tensors])

    def _record(self, block: int, moment: Moment, tensors: list[Tensor]) -> None:
        """Add one attention to the maps, image by image."""
        for row in range(len(tensors[0])):
            sample = row if moment.samples is None else moment.samples[row]
            if moment.encodings is not None:
                self.maps.encodings[sample] = moment.encodings[row]
            elif self.encoding is not None:
                self.maps.encodings[sample] = self.encoding.select(row)
            step = moment.step if "step" in self.keep else None
            of_row = [one[row] for one in tensors]
            if len(of_row) == len(ATTN2_ROLES):
                self._add((ATTN2,), block, sample, step, *of_row, text=0)
                continue
            q, k, text_q, text_k = of_row
            keys, text = torch.cat([text_k, k], dim=1), text_k.shape[1]  # the model's order
            of_image = tuple(part for part in self.parts if part.startswith("image-"))
            of_text = tuple(part for part in self.parts if part.startswith("text-"))
            self._add(of_image, block, sample, step, q, keys, text=text)
            self._add(of_text, block, sample, step, text_q, keys, text=text)

    def _add(
        self,
        parts: tuple[str, ...],
        block: int,
        sample: int,
        step: int | None,
        q: Tensor,
        k: Tensor,
        *,
        text: int,
    ) -> None:
        """Add the rows of some queries, (H, Q, K), to the parts that they belong to."""
        grid = self.maps.grid
        assert grid is not None  # the patches come first
        totals = {part: self._total(Key(part, block, sample, step), q, grid, text) for part in parts}
        for rows, probabilities in attention_rows(q, k) if parts else ():
            for part, total in totals.items():
                add_rows(total.tensor, rows, probabilities, part, grid, text)
        for total in totals.values():
            total.count += 1

    def _total(self, key: Key, q: Tensor, grid: Grid, text: int) -> Total:
        if key not in self.maps.totals:
            heads = len(q) if "head" in self.keep else 1
            shape = (heads, *part_shape(key.part, grid, text))
            self._check_budget(heads, grid, text, shape)
            self.maps.totals[key] = Total(q.new_zeros(shape, dtype=torch.float32))
        total = self.maps.totals[key]
        if total.tensor.shape[1:] != part_shape(key.part, grid, text):
            raise TapError(
                f"the maps of image {key.sample} are {tuple(total.tensor.shape[1:])}, and now "
                f"{part_shape(key.part, grid, text)}: record other sizes and prompts in a block of their own"
            )
        return total

    def _check_budget(self, heads: int, grid: Grid, text: int, shape: tuple[int, ...]) -> None:
        """See, before the first map, that all of one image fit; and before each that it does."""
        dual = sum(role == ATTN2_ROLES[0] for _, role in self.roles.values())
        joint = sum(role == JOINT_ROLES[0] for _, role in self.roles.values())
        numbers = {part: dual if part == ATTN2 else joint for part in self.parts}
        needed = nbytes_of(numbers, grid, text, heads=heads)
        if self.maps.totals:
            needed = self.maps.nbytes + 4 * prod(shape)
        if needed + WORKSPACE > self.budget:
            what = "another map" if self.maps.totals else "one image"
            raise BudgetError(
                f"with {what}, recording takes {size(needed + WORKSPACE)}, and the budget is "
                f"{size(self.budget)}: record fewer blocks or parts, keep neither heads nor steps, take "
                "patches together (pool=2), or raise the budget"
            )
