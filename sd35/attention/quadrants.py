"""The parts of an attention map, and how rows are added up to them.

The joint sequence is [text, image], so a map has four quadrants, named query first: "image-text" is how
much each image token reads from each text token. The rows of "image-image" and "image-text" sum to 1
together, as do those of "text-image" and "text-text". "attn2" is the second, image-only attention of the
dual blocks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

QUADRANTS = ("image-image", "image-text", "text-image", "text-text")
ATTN2 = "attn2"
PARTS = (*QUADRANTS, ATTN2)


@dataclass(frozen=True)
class Grid:
    """The image tokens of a picture, in rows, and the squares in which they are taken together."""

    rows: int
    columns: int
    pool: int  # side of a square, in patches; 1 takes none together

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of squares; those at the right and at the bottom may be smaller."""
        return -(-self.rows // self.pool), -(-self.columns // self.pool)

    @property
    def number(self) -> int:
        """How many squares there are."""
        return self.cells[0] * self.cells[1]

    def index(self, device: torch.device) -> Tensor:
        """The square of each image token, (N,)."""
        row = torch.arange(self.rows, device=device) // self.pool
        column = torch.arange(self.columns, device=device) // self.pool
        return (row[:, None] * self.cells[1] + column[None, :]).flatten()


def part_shape(part: str, grid: Grid, text: int) -> tuple[int, int]:
    """Queries and keys of a part, with `text` context tokens."""
    sizes = {"image": grid.number, "text": text}
    query, key = ("image", "image") if part == ATTN2 else part.split("-")
    return sizes[query], sizes[key]


def add_rows(total: Tensor, rows: slice, probabilities: Tensor, part: str, grid: Grid, text: int) -> None:
    """Add some rows of an attention map to a part of it.

    Within a square of patches the attention of queries is averaged and that paid to keys is summed, so that
    rows keep their sum.

    Args:
        total: the part, (H, Q, K), or (1, Q, K) for the mean over heads; changed in place.
        rows: which queries of the image, or of the text, these are.
        probabilities: (H, C, L), L being all keys of that attention.
        part: its name.
        grid: of the image tokens.
        text: context tokens.
    """
    query, key = ("image", "image") if part == ATTN2 else part.split("-")
    if part != ATTN2:
        probabilities = probabilities[..., :text] if key == "text" else probabilities[..., text:]
    if len(total) == 1:
        probabilities = probabilities.mean(dim=0, keepdim=True)
    if grid.pool == 1 or query == key == "text":
        total[:, rows] += probabilities
        return
    squares = grid.index(total.device)
    if key == "image":
        pooled = probabilities.new_zeros(*probabilities.shape[:2], grid.number)
        probabilities = pooled.index_add_(2, squares, probabilities)
    if query == "text":
        total[:, rows] += probabilities
    else:
        share = (
            squares.bincount().to(probabilities.dtype).reciprocal()[squares[rows]]
        )  # of a query in its square
        total.index_add_(1, squares[rows], probabilities * share[:, None])
