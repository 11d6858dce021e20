"""The sizes of an MM-DiT, read off the shapes of a checkpoint's tensors."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

Shapes = Mapping[str, Sequence[int]]
"""Tensor name, without the component's prefix, to shape."""

HEAD_DIM = 64
"""Width of an attention head in every released model; files without qk-norm do not tell it."""


class ShapeError(ValueError):
    """Tensor shapes from which no model of this kind can be built."""


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """What distinguishes SD3-medium, SD3.5-medium and SD3.5-large. Everything else is fixed.

    | | SD3-medium | SD3.5-medium | SD3.5-large, -turbo |
    |---|---|---|---|
    | dim | 1536 | 1536 | 2432 |
    | depth, num_heads | 24, 24 | 24, 24 | 38, 38 |
    | qk_norm | no | yes | yes |
    | dual_blocks | none | 0 to 12 | none |
    | pos_embed_size | 192 | 384 | 192 |
    """

    dim: int  # D, the width of both streams
    depth: int  # joint blocks
    num_heads: int
    pos_embed_size: int  # side of the stored position table, in patches
    context_dim: int = 4096  # width of the text encoders' output
    pooled_dim: int = 2048  # CLIP-L 768 + CLIP-G 1280
    channels: int = 16  # of the latents
    patch_size: int = 2
    qk_norm: bool = True
    dual_blocks: tuple[int, ...] = ()  # blocks whose image stream has a second attention of its own
    inpaints: bool = False  # reads a mask and the masked picture's latents beside its own

    @property
    def in_channels(self) -> int:
        """Channels that enter: the latents; for inpainting also a mask and as many of the masked picture."""
        return 2 * self.channels + 1 if self.inpaints else self.channels

    @classmethod
    def from_shapes(cls, shapes: Shapes, *, num_heads: int | None = None) -> "MMDiTConfig":
        """Read every size off the tensors of a checkpoint.

        Args:
            shapes: name to shape, names without `model.diffusion_model.`.
            num_heads: of the attention, which no shape tells; None takes heads of 64, as all released
                models have.

        Raises:
            ShapeError: a tensor that decides a size is absent or has the wrong number of axes, or the width
                is no multiple of 64 and `num_heads` is None.
        """
        dim, channels, patch_size, _ = shape_of(shapes, "x_embedder.proj.weight", 4)
        velocity = len_of(shapes, "final_layer.linear.weight") // patch_size**2
        inpaints = velocity > 0 and channels == 2 * velocity + 1
        _, positions, _ = shape_of(shapes, "pos_embed", 3)
        return cls(
            dim=dim,
            depth=count_layers(shapes, "joint_blocks"),
            num_heads=count_heads(dim) if num_heads is None else num_heads,
            pos_embed_size=isqrt(positions),
            context_dim=shape_of(shapes, "context_embedder.weight", 2)[1],
            pooled_dim=shape_of(shapes, "y_embedder.mlp.0.weight", 2)[1],
            channels=velocity if inpaints else channels,
            inpaints=inpaints,
            patch_size=patch_size,
            qk_norm="joint_blocks.0.x_block.attn.ln_k.weight" in shapes,
            dual_blocks=layers_with(shapes, r"joint_blocks\.(\d+)\.x_block\.attn2\.qkv\.weight"),
        )


def shape_of(shapes: Shapes, name: str, ndim: int) -> tuple[int, ...]:
    """The shape of one tensor, or a ShapeError that says which one is needed."""
    shape = tuple(shapes.get(name, ()))
    if len(shape) != ndim:
        found = f"has shape {shape}" if name in shapes else "is not there"
        raise ShapeError(f"the sizes are read off {name!r}, which must have {ndim} axes, but it {found}")
    return shape


def len_of(shapes: Shapes, name: str) -> int:
    """The first axis of one tensor; 0 where it is not there."""
    return (*shapes.get(name, ()), 0)[0]


def count_heads(dim: int) -> int:
    """How many heads a width has; a ShapeError where it does not divide into whole ones."""
    if dim < HEAD_DIM or dim % HEAD_DIM:
        raise ShapeError(f"a width of {dim} does not divide into heads of {HEAD_DIM}")
    return dim // HEAD_DIM


def layers_with(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    """The layer numbers for which a name matches; the pattern's group is the number."""
    return tuple(sorted({int(match[1]) for name in names if (match := re.fullmatch(pattern, name))}))


def count_layers(names: Iterable[str], stack: str) -> int:
    """How many layers `stack.0`, `stack.1`, ... there are; a gap in the numbers is a ShapeError."""
    layers = layers_with(names, re.escape(stack) + r"\.(\d+)\..*")
    if not layers or layers[-1] != len(layers) - 1:
        raise ShapeError(f"expected layers {stack}.0 to {stack}.n without a gap, found {list(layers)}")
    return len(layers)
