"""The ways of training, as settings: what each has beside `Training`. Nothing here needs torch."""

from dataclasses import dataclass

from ..fields import Name, Number, Switch, Whole, setting
from .settings import Texts, Training


@dataclass(frozen=True, kw_only=True)
class LoraTraining(Training):
    """How a LoRA is trained."""

    rank: int = setting(16, Whole(1), "of each pair of matrices", decides="flow")
    alpha: float | None = setting(
        None, Number(0, open=True), "the update counts alpha / rank; the rank by default", decides="flow"
    )
    dora: bool = setting(False, Switch(), "train magnitudes as well (DoRA)", decides="flow")
    target: tuple[str, ...] = setting(
        ("attention",),
        Texts(),
        "layers: attention, attentions, blocks, image, or a pattern such as "
        "'joint_blocks.*.x_block.mlp.*'; may be repeated",
        decides="flow",
    )
    text_target: tuple[str, ...] = setting(
        (), Texts(), "layers of the CLIP encoders likewise: attention, blocks or a pattern", decides="flow"
    )
    spelling: str = setting(
        "diffusers",
        Name(lambda: ("diffusers", "kohya")),
        "names in the file: diffusers, or kohya (sd-scripts' and ComfyUI's)",
        decides="output",
    )
