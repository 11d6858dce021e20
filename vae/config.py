"""What sets one autoencoder apart from another, and how a checkpoint tells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .blocks import GROUPS


@dataclass(frozen=True)
class VAEConfig:
    """The sizes of an autoencoder. SD3 and SD3.5: (128, 256, 512, 512), 2 and 16.

    Raises:
        ValueError: no levels, a width that is no multiple of 32, or a count below 1.
    """

    channels: tuple[int, ...]
    """Width of each level, from the image's resolution down; each further level halves it."""

    num_res_blocks: int
    """Residual blocks of a level in the encoder. The decoder has one more in each."""

    latent_channels: int

    def __post_init__(self) -> None:
        if not self.channels or any(width < GROUPS or width % GROUPS for width in self.channels):
            raise ValueError(
                f"every level's width must be a positive multiple of {GROUPS}, got {self.channels}"
            )
        if self.num_res_blocks < 1 or self.latent_channels < 1:
            raise ValueError(
                "num_res_blocks and latent_channels must be at least 1, "
                f"got {self.num_res_blocks} and {self.latent_channels}"
            )

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel along each side: 8 with four levels."""
        return 2 ** (len(self.channels) - 1)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> "VAEConfig":
        """Read the sizes off a checkpoint's tensor shapes.

        Args:
            shapes: tensor name, without the prefix `first_stage_model.`, to shape. Names beyond the
                ones needed are not looked at; a strict load reports those.

        Raises:
            ValueError: these are not the shapes of an autoencoder of this kind.
        """
        levels = _count(shapes, "encoder.down.{}.block.0.conv1.weight")
        blocks = _count(shapes, "encoder.down.0.block.{}.conv1.weight")
        # At least one level, so that a source without any is told which tensor it lacks.
        firsts = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(max(levels, 1))]
        for name in (*firsts, "decoder.conv_in.weight"):
            if len(shapes.get(name, ())) != 4:
                raise ValueError(
                    f"no autoencoder in these {len(shapes)} tensors: {name} (four-dimensional) is not "
                    "among them; names are expected without the prefix 'first_stage_model.'"
                )
        widths = tuple(int(shapes[name][0]) for name in firsts)
        latent_channels = int(shapes["decoder.conv_in.weight"][1])
        return cls(channels=widths, num_res_blocks=blocks, latent_channels=latent_channels)


def _count(shapes: Mapping[str, Sequence[int]], template: str) -> int:
    """How many of `template`'s names, numbered from 0, are there without a gap."""
    number = 0
    while template.format(number) in shapes:
        number += 1
    return number
