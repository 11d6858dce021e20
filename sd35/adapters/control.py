"""From a control picture to what the autoencoder encodes for a ControlNet."""

from torch import Tensor

from mmdit import ControlNet

CONTROL_TYPES = ("blur", "canny", "depth")
"""What a released ControlNet may read; the place in this list is the number that its file holds."""


def control_type_of(net: ControlNet) -> str | None:
    """What a ControlNet reads, as its file says; None where it says nothing, as in a diffusers folder.

    Raises:
        ValueError: the file's number is none of `CONTROL_TYPES`.
    """
    if net.control_type is None:
        return None
    number = int(net.control_type)
    if not 0 <= number < len(CONTROL_TYPES):
        raise ValueError(
            f"the ControlNet's file has control_type {number}, expected 0 to 2: {', '.join(CONTROL_TYPES)}"
        )
    return CONTROL_TYPES[number]


def control_image(image: Tensor, control_type: str) -> Tensor:
    """Bring a control picture into the range that a ControlNet for SD3.5-large was trained with.

    Blurred pictures and depth stay in [-1, 1]. Canny edges become 255 · u / 2 + 0.5 with u in [0, 1], so
    0.5 where there is no edge and 128 on one: far outside what the autoencoder usually sees, and what the
    official canny ControlNet expects all the same.

    Args:
        image: (B, 3, H, W) in [-1, 1], edges white on black, near things bright.
        control_type: one of `CONTROL_TYPES`.

    Returns:
        What to encode, (B, 3, H, W). The control latents are the encoding, shifted and scaled as usual.

    Raises:
        ValueError: the type is unknown.
    """
    if control_type not in CONTROL_TYPES:
        raise ValueError(f"control_type must be one of {', '.join(CONTROL_TYPES)}, got {control_type!r}")
    return 255 * (image + 1) / 4 + 0.5 if control_type == "canny" else image
