"""Reading sizes off the shapes of a checkpoint's tensors."""

from collections.abc import Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]


def shape_of(shapes: Shapes, name: str, *, rank: int) -> tuple[int, ...]:
    """Return the shape of `name`.

    Raises:
        ValueError: it is missing, or has not `rank` dimensions.
    """
    if name not in shapes:
        raise ValueError(
            f"these tensors are no such encoder: {name} is missing from its {len(shapes)} tensors"
        )
    shape = tuple(shapes[name])
    if len(shape) != rank:
        raise ValueError(f"{name} should have {rank} dimensions, but has the shape {shape}")
    return shape


def count_layers(shapes: Shapes, prefix: str) -> int:
    """Count the layers: one more than the largest index behind `prefix`, so that a gap is found when loading.

    Raises:
        ValueError: there is none.
    """
    indices = [name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)]
    layers = [int(index) for index in indices if index.isdecimal()]
    if not layers:
        raise ValueError(f"these tensors are no such encoder: none of their names begins with {prefix}0")
    return max(layers) + 1
