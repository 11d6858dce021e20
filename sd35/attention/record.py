"""Recording the attention of the MM-DiT from its queries and keys, while it runs."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmdit import MMDiT
from textenc import Encoding

from ..evaluation import Branch
from ..taps import BudgetError, TapError
from ..taps.logits import has_logits
from ..taps.match import near
from ..taps.moment import Moment, Selection
from ..taps.sizes import size
from ..taps.watch import Call, check_watchable, watching_calls
from .maps import AttentionMaps, Key, Total
from .quadrants import ATTN2, PARTS, Grid, add_rows, part_shape
from .softmax import CHUNK_BYTES, attention_rows, logit_rows

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
    rows at a time, from the queries and keys that go into it, or from the logits that an outer `patch` put
    there, and added up: a map is the mean over all steps and heads unless these are kept apart. What another
    module in an attention's place does cannot be seen, and is refused. For all 24 blocks of SD3.5-medium at
    1024 x 1024, with a context of 333 tokens, the default parts take 0.2 GiB and all four quadrants 1.8 GiB;
    all with "attn2" and pool=2 take 0.2 GiB.

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
        TapError: a part, block, step or branch does not exist, the model is compiled, or another module is in
            an attention's place. At the end of the block: nothing was recorded, or a step never came.
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
    attentions = _attentions(mmdit, parts, chosen)
    if not attentions:
        raise TapError(f"there is nothing to record of {', '.join(parts) or 'no part'} in blocks {chosen}")
    recorder = _Recorder(
        tuple(parts), frozenset(keep), pool, Selection(steps, branch), encoding, budget, attentions
    )
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


class _Attention(NamedTuple):
    """One attention that is recorded."""

    path: str
    module: nn.Module
    block: int
    joint: bool  # with the text, and not among image tokens alone


@contextmanager
def _recording(mmdit: MMDiT, recorder: "_Recorder") -> Iterator[AttentionMaps]:
    seen = {one.module: partial(recorder.visit, one) for one in recorder.attentions}
    with watching_calls({mmdit.x_embedder.proj: recorder.begin, **seen}):
        yield recorder.maps
    for one in recorder.attentions:
        if _at(mmdit, one.path) is not one.module:
            raise TapError(f"{one.path} was replaced inside the block: put it in its place before")
    recorder.selection.check_ran([])
    if not recorder.maps.totals:
        raise TapError("no attention was recorded: the transformer did not run for it inside the block")


def _attentions(mmdit: MMDiT, parts: Collection[str], blocks: list[int]) -> list[_Attention]:
    """The attentions that parts are recorded of.

    Raises:
        TapError: another module is in the place of one of them, and cannot be looked into.
    """
    found = []
    for block in blocks:
        if set(parts) - {ATTN2}:
            found.append((f"joint_blocks.{block}.attention", block, True))
        if ATTN2 in parts and block in mmdit.config.dual_blocks:
            found.append((f"joint_blocks.{block}.x_block.attn2.attention", block, False))
    attentions = []
    for path, block, joint in found:
        module = _at(mmdit, path)
        if module is None or not has_logits(module):
            what = "something else" if module is None else f"a {type(module).__name__}"
            raise TapError(
                f"what {path} does cannot be recorded: {what} was put in its place. Leave its block out "
                f"(blocks=...); or change the logits instead, sd35.patch(mmdit, {{'{path}.logits': ...}}), "
                "which the maps follow"
            )
        attentions.append(_Attention(path, module, block, joint))
    return attentions


def _at(mmdit: MMDiT, path: str) -> nn.Module | None:
    try:
        return mmdit.get_submodule(path)
    except AttributeError:
        return None


@dataclass
class _Recorder:
    """Takes the queries and keys of each attention, computes its rows, and adds them to the maps."""

    parts: tuple[str, ...]
    keep: frozenset[str]
    pool: int
    selection: Selection
    encoding: Encoding | None
    budget: int
    attentions: list[_Attention]
    maps: AttentionMaps = field(default_factory=AttentionMaps)

    def begin(self, call: Call) -> None:
        """Take note of rows and columns, of the patches as a map."""
        self.maps.grid = Grid(call.output.shape[-2], call.output.shape[-1], self.pool)

    def visit(self, attention: _Attention, call: Call) -> None:
        """Record one attention: what its queries and keys give, or the logits that were put there."""
        q, k = (tensor.detach() for tensor in call.args[:2])
        logits = None if call.logits is None else call.logits.detach()
        for moment in self.selection.moments():
            of_branch = None if logits is None else moment.of(logits)
            self._record(attention, moment, moment.of(q), moment.of(k), of_branch)

    def _record(
        self, attention: _Attention, moment: Moment, q: Tensor, k: Tensor, logits: Tensor | None
    ) -> None:
        """Add one attention to the maps, image by image."""
        grid = self.maps.grid
        assert grid is not None  # the patches come first
        text = q.shape[2] - grid.rows * grid.columns  # text tokens come first; attn2 has none
        for row in range(len(q)):
            sample = row if moment.samples is None else moment.samples[row]
            if moment.encodings is not None:
                self.maps.encodings[sample] = moment.encodings[row]
            elif self.encoding is not None:
                self.maps.encodings[sample] = self.encoding.select(row)
            step = moment.step if "step" in self.keep else None
            for query, rows in (("image", slice(text, None)), ("text", slice(0, text))):
                own = [ATTN2] if not attention.joint else [p for p in self.parts if p.startswith(f"{query}-")]
                if rows == slice(0, 0) or not own:
                    continue
                keys = [Key(part, attention.block, sample, step) for part in own]
                if logits is None:
                    probabilities = attention_rows(q[row, :, rows], k[row])
                else:
                    probabilities = logit_rows(logits[row, :, rows])
                self._add(keys, probabilities, grid, text, q)

    def _add(
        self, keys: list[Key], probabilities: Iterator[tuple[slice, Tensor]], grid: Grid, text: int, q: Tensor
    ) -> None:
        """Add the rows of an attention to the maps that they belong to."""
        totals = {key.part: self._total(key, q, grid, text) for key in keys}
        for rows, some in probabilities:
            for part, total in totals.items():
                add_rows(total.tensor, rows, some, part, grid, text)
        for total in totals.values():
            total.count += 1

    def _total(self, key: Key, q: Tensor, grid: Grid, text: int) -> Total:
        if key not in self.maps.totals:
            heads = q.shape[1] if "head" in self.keep else 1
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
        joint = sum(one.joint for one in self.attentions)
        dual = len(self.attentions) - joint
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
