"""Pictures as input: the settings of image to image, of inpainting and of ControlNets."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from .controls import Control, Controls
from .fields import setting
from .kinds import Name, Number, Switch, Whole
from .shown import Pictures, Shown, nth

Fit = Literal["crop", "pad", "stretch"]
Rule = Literal["reference", "diffusers"]
White = Literal["redrawn", "kept"]
MaskRule = Literal["nearest", "any"]


WITH_IMAGE = {"acts": lambda one: bool(one.image), "where": "with an image"}
WITH_MASK = {"acts": lambda one: bool(one.mask), "where": "with a mask"}
"""In which requests a setting has an effect."""


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """What a generation is told of pictures that it starts from or is steered by."""

    image: tuple[Shown, ...] | None = setting(
        None,
        Pictures(),
        "draw from this picture, at a --strength below 1, or redraw a part of it, with --mask; repeat it for "
        "one to each picture; none leaves out a saved one's",
        decides="start",
    )
    strength: float = setting(
        1.0,
        Number(0, 1, open=True),
        "how much of the schedule to run on the image, below 1 without a mask; less keeps more of it",
        decides="start",
        **WITH_IMAGE,
    )
    start_rule: Rule = setting(
        "reference",
        Name.of(Rule),
        "whose rounding of the first step: reference or diffusers, which may begin one step later",
        decides="start",
        acts=lambda one: bool(one.image) and one.strength < 1,
        where="with an image and a strength below 1",
    )
    fit: Fit | None = setting(
        None,
        Name.of(Fit),
        "pictures of another size: crop what overlaps, pad (with the edge; under a mask that is redrawn), or "
        "stretch, as the references do; refused by default",
        decides="start",
        acts=lambda one: bool(one.image) or bool(one.control),
        where="with an image or a control picture",
    )
    mask: tuple[Shown, ...] | None = setting(
        None,
        Pictures(),
        "what of the image to redraw: white, from half grey on",
        decides="flow",
        **WITH_IMAGE,
    )
    mask_white: White = setting(
        "redrawn",
        Name.of(White),
        "what the white of the mask is: redrawn or kept",
        decides="flow",
        **WITH_MASK,
    )
    mask_rule: MaskRule = setting(
        "nearest",
        Name.of(MaskRule),
        "a latent is redrawn by every eighth pixel (nearest, as diffusers), or where any of its 64 is (any)",
        decides="flow",
        **WITH_MASK,
    )
    paste: bool = setting(
        False,
        Switch(),
        "put the pixels of the image back where the mask keeps them: decoding changes them a little",
        decides="output",
        **WITH_MASK,
    )
    feather: int = setting(
        8,
        Whole(0, 512),
        "width of the seam, in pixels inside the mask",
        decides="output",
        acts=lambda one: one.paste,
        where="with paste",
    )
    control: tuple[Control, ...] | None = setting(
        None, Controls(), "ControlNets, each with its picture", decides="flow", is_option=False
    )
    control_rule: Rule = setting(
        "reference",
        Name.of(Rule),
        "whether the last block takes a ControlNet's residual: reference (yes) or diffusers (no)",
        decides="flow",
        acts=lambda one: bool(one.control),
        where="with a ControlNet",
    )
    control_uncond: bool = setting(
        True,
        Switch(),
        "let ControlNets steer the negative half of guidance too, as both references do",
        decides="flow",
        acts=lambda one: bool(one.control) and one.guidance_scale != 1,
        where="with a ControlNet and a guidance scale other than 1",
    )

    def pictures_of(self, index: int) -> dict[str, Any]:
        """The pictures that image `index` of a batch is made from."""
        return {
            "image": None if self.image is None else nth(self.image, index),
            "mask": None if self.mask is None else nth(self.mask, index),
            "control": None if self.control is None else tuple(one.nth(index) for one in self.control),
        }

    def without_image(self) -> Any:
        """The same as a generation from noise alone, steered as it was."""
        changed = {name: None for name in ("image", "mask")}
        others = ("strength", "start_rule", "mask_white", "mask_rule", "paste", "feather")
        defaults = {name: type(self).__dataclass_fields__[name].default for name in others}
        fit = self.fit if self.control else None
        return replace(self, **changed, **defaults, fit=fit)
