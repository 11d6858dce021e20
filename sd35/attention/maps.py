"""Attention maps as they were added up, read as matrices, heat maps and numbers."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from textenc import Encoding
from textenc.prompt import EncoderName

from ..taps import TapError
from ..taps.match import near
from .quadrants import PARTS, Grid
from .words import WordError, find_word, token_labels


@dataclass(frozen=True)
class Key:
    """Which map: a part of one block's attention, for one image; at one step, or at all of them together."""

    part: str
    block: int
    sample: int
    step: int | None


@dataclass
class Total:
    """The sum of several maps."""

    tensor: Tensor  # (H, Q, K), or (1, Q, K) for the mean over heads
    count: int = 0

    @property
    def mean(self) -> Tensor:
        """(H, Q, K) or (1, Q, K)."""
        return self.tensor / self.count


@dataclass
class AttentionMaps:
    """What `attention_maps` recorded; it fills up while the block runs."""

    totals: dict[Key, Total] = field(default_factory=dict)
    encodings: dict[int, Encoding] = field(default_factory=dict)
    """The prompt of each image, as a batch of one."""
    grid: Grid | None = None
    """Of the image tokens, once the model has run."""

    @property
    def blocks(self) -> list[int]:
        """The blocks that were recorded, rising."""
        return sorted({key.block for key in self.totals})

    @property
    def nbytes(self) -> int:
        """What the maps take."""
        return sum(total.tensor.numel() * total.tensor.itemsize for total in self.totals.values())

    def part(
        self,
        name: str,
        *,
        block: int | Iterable[int] | None = None,
        head: int | None = None,
        step: int | None = None,
        sample: int = 0,
    ) -> Tensor:
        """A part of the attention as a matrix: each row says from where one query read.

        Args:
            name: "image-image", "image-text", "text-image" or "text-text", query first; or "attn2".
            block: one or several; None is the mean over those recorded.
            head: one of them, where heads were kept; None is the mean over all.
            step: of the solver, where steps were kept; None is the mean over those recorded.
            sample: which image of a generation, or row of a batch.

        Returns:
            Probabilities, (queries, keys), float32. Image tokens are row by row; in squares where pooled.

        Raises:
            TapError: this was not recorded.
        """
        if name not in PARTS:
            raise TapError(
                f"there is no {name!r} of the attention, only {', '.join(PARTS)}" + near(name, PARTS)
            )
        blocks = None if block is None else {block} if isinstance(block, int) else set(block)
        self._check_recorded("part", {name}, {key.part for key in self.totals})
        self._check_recorded("block", blocks, {key.block for key in self.totals if key.part == name})
        self._check_recorded("image", {sample}, {key.sample for key in self.totals})
        self._check_recorded("step", None if step is None else {step}, {key.step for key in self.totals})
        chosen = [
            total.mean
            for key, total in self.totals.items()
            if (key.part, key.sample) == (name, sample)
            and (blocks is None or key.block in blocks)
            and step in (None, key.step)
        ]
        heads = len(chosen[0])
        if head is not None and (heads == 1 or not 0 <= head < heads):
            raise TapError(
                f"no head {head} was recorded: "
                + ("pass keep=['head']" if heads == 1 else f"there are {heads}")
            )
        return torch.stack([one.mean(dim=0) if head is None else one[head] for one in chosen]).mean(dim=0)

    def heatmap(
        self,
        word: str,
        *,
        part: str = "image-text",
        encoder: EncoderName | None = None,
        occurrence: int | None = None,
        block: int | Iterable[int] | None = None,
        head: int | None = None,
        step: int | None = None,
        sample: int = 0,
    ) -> Tensor:
        """Where in the picture a word is read: the sum over all pieces of the word.

        With the part "image-text" a value is the share of a patch's attention that the word gets; with
        "text-image", the share of the word's attention that the patch gets, added up over its pieces.

        Args:
            word: a word or several, as they stand in the prompt.
            part: "image-text" or "text-image".
            encoder: only pieces of "clip_l", "clip_g" or "t5". CLIP-L and CLIP-G share their positions, and
                cannot be told apart.
            occurrence: which, from 0, where the word comes several times; None takes all.
            block: as in `part`.
            head: as in `part`.
            step: as in `part`.
            sample: as in `part`.

        Returns:
            (rows, columns) of patches, or of squares of patches where pooled; not normalised.

        Raises:
            WordError: the word is not in the prompt, was cut off, or no prompt is known.
            TapError: this was not recorded.
        """
        if part not in ("image-text", "text-image"):
            raise TapError(f"a heat map is of 'image-text' or 'text-image', got {part!r}")
        positions = list(find_word(self.encoding(sample), word, encoder=encoder, occurrence=occurrence))
        matrix = self.part(part, block=block, head=head, step=step, sample=sample)
        heat = matrix[:, positions].sum(dim=1) if part == "image-text" else matrix[positions].sum(dim=0)
        assert self.grid is not None  # since a part was recorded
        return heat.reshape(self.grid.cells)

    def encoding(self, sample: int = 0) -> Encoding:
        """The prompt of an image.

        Raises:
            WordError: it is not known.
        """
        if sample not in self.encodings:
            raise WordError(
                f"the prompt of image {sample} is not known: draw it through pipe.generate or pipe.velocity "
                "inside the block, or pass encoding= to attention_maps"
            )
        return self.encodings[sample]

    def labels(self, sample: int = 0) -> list[str]:
        """A name for each text token, with the encoder and the piece of the prompt; see `token_labels`."""
        return token_labels(self.encoding(sample))

    def _check_recorded(self, what: str, wanted: set | None, there: set) -> None:
        missing = sorted((wanted or set()) - there)
        if missing:
            kept = ", ".join(map(str, sorted(one for one in there if one is not None)))
            advice = "; keep=['step'] keeps steps apart" if what == "step" and not kept else ""
            raise TapError(f"no {what} {missing[0]} was recorded, only {kept or 'the mean of all'}{advice}")


def heat_share(heat: Tensor, region: Tensor) -> float:
    """The share of a heat map that falls into a region.

    Args:
        heat: (rows, columns), not negative.
        region: (height, width) in [0, 1], at the same or a finer resolution: how much of each pixel belongs.

    Returns:
        0 to 1; for even heat this is the region's share of the area.

    Raises:
        ValueError: there is no heat, or the region is not two-dimensional.
    """
    if region.ndim != 2 or heat.ndim != 2:
        raise ValueError(f"expected two matrices, got {tuple(heat.shape)} and {tuple(region.shape)}")
    if not heat.sum() > 0:
        raise ValueError("there is no heat on this map")
    inside = F.adaptive_avg_pool2d(region[None].to(heat), (heat.shape[0], heat.shape[1]))[
        0
    ]  # (rows, columns)
    return float((heat * inside).sum() / heat.sum())
