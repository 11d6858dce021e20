"""The ways of training, as settings: what each has beside `Training`. Nothing here needs torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from ..errors import SettingsError
from ..fields import setting
from ..kinds import Name, Number, Numbers, Switch, Whole
from ..schedules import Preset
from .settings import Texts, Training, rate

PICTURES = ("buckets", "caption", "caption_dropout", "flip", "skip_unreadable")
"""Settings of folders of pictures."""
OF_LORA: Mapping[str, Any] = {"acts": lambda one: not one.trains_whole, "where": "where a LoRA is trained"}


@dataclass(frozen=True, kw_only=True)
class LoraTraining(Training):
    """How a LoRA is trained. Of the ways that can train all weights instead, `whole` says which."""

    rank: int = setting(16, Whole(1), "of each pair of matrices", decides="flow", **OF_LORA)
    alpha: float | None = setting(
        None,
        Number(0, open=True),
        "the update counts alpha / rank; the rank by default",
        decides="flow",
        **OF_LORA,
    )
    dora: bool = setting(False, Switch(), "train magnitudes as well (DoRA)", decides="flow", **OF_LORA)
    target: tuple[str, ...] = setting(
        ("attention",),
        Texts(),
        "layers: attention, attentions, blocks, image, or a pattern such as "
        "'joint_blocks.*.x_block.mlp.*'; may be repeated",
        decides="flow",
        **OF_LORA,
    )
    text_target: tuple[str, ...] = setting(
        (),
        Texts(),
        "layers of the CLIP encoders likewise: attention, blocks or a pattern",
        decides="flow",
        **OF_LORA,
    )
    spelling: str = setting(
        "diffusers",
        Name(lambda: ("diffusers", "kohya")),
        "names in the file: diffusers, or kohya (sd-scripts' and ComfyUI's)",
        decides="output",
        **OF_LORA,
    )


@dataclass(frozen=True, kw_only=True)
class FullTraining(Training):
    """How a whole transformer is trained."""

    learning_rate: float = rate(1e-5)

    @property
    def trains_whole(self) -> bool:
        """See `Training`."""
        return True


def _deterministic() -> tuple[str, ...]:
    """Solvers that a pair can be made by: of a stochastic one, the noise does not belong to the end."""
    from flow import SOLVERS  # when a value is checked: torch takes seconds

    return tuple(name for name, one in SOLVERS.items() if not one.stochastic)


def _whole() -> Any:
    """The setting of ways that train a LoRA or all weights."""
    return setting(False, Switch(), "train all weights in place of a LoRA", decides="flow")


@dataclass(frozen=True, kw_only=True)
class DreamBoothTraining(LoraTraining):
    """How one subject is taught beside its class."""

    caption_dropout: float = setting(
        0.0, Number(0, 1), "share of captions that are replaced by the empty text", decides="flow"
    )
    class_prompt: tuple[str, ...] = setting(
        (), Texts(), 'what the class is, "a photo of a dog"; may be repeated', decides="flow"
    )
    class_pictures: int = setting(100, Whole(1), "how many are drawn of the class", decides="flow")
    prior_weight: float = setting(1.0, Number(0, open=True), "of the class pictures' loss", decides="flow")
    whole: bool = _whole()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.class_prompt:
            raise SettingsError('class_prompt says what is to be kept: "a photo of a dog", for instance')

    @property
    def at_once(self) -> int:
        """The subject's and those of its class."""
        return 2 * self.batch_size

    @property
    def trains_whole(self) -> bool:
        """See `Training`."""
        return self.whole


@dataclass(frozen=True, kw_only=True)
class ReflowTraining(LoraTraining):
    """How a flow is trained on its own pairs of noise and picture."""

    without: ClassVar[tuple[str, ...]] = (*PICTURES, "validate_every")

    pairs: int = setting(1000, Whole(1), "how many the model makes first", decides="flow")
    pair_steps: int = setting(28, Whole(1), "steps of each", decides="flow")
    pair_solver: str = setting(
        "euler", Name(_deterministic), "how those are taken; fireflow and ab2 end nearer", decides="flow"
    )
    pair_schedule: str = setting(
        "reference",
        Name(lambda: get_args(Preset)),
        "their table of noise levels, bent by schedule_shift: reference, diffusers, linear or tailed",
        decides="flow",
    )
    pair_guidance: float = setting(
        4.5, Number(), "guidance of each, which becomes part of the new flow", decides="flow"
    )
    pair_interval: tuple[float, float] = setting(
        (0.0, 1.0),
        Numbers(("LOW", "HIGH"), levels=True),
        "noise levels that are guided, both ends included; the embedded model is drawn with 0.7 1",
        decides="flow",
        acts=lambda one: one.pair_guidance != 1,
        where="where pairs are guided",
    )
    whole: bool = _whole()

    @property
    def trains_whole(self) -> bool:
        """See `Training`."""
        return self.whole


@dataclass(frozen=True, kw_only=True)
class ControlNetTraining(Training):
    """How a ControlNet is trained."""

    without: ClassVar[tuple[str, ...]] = ("sample_prompt", "sample_every")

    learning_rate: float = rate(1e-5)
    depth: int | None = setting(
        None, Whole(1), "blocks of the ControlNet; half of the transformer's by default", decides="flow"
    )
    control_type: str | None = setting(
        None,
        Name(lambda: ("blur", "canny", "depth")),
        "what the control pictures show: blur, canny or depth, in the ranges of the released nets",
        decides="flow",
    )

    @property
    def trains_whole(self) -> bool:
        """See `Training`."""
        return True


@dataclass(frozen=True, kw_only=True)
class VaeTraining(Training):
    """How an autoencoder is trained; noise levels, captions and samples do not concern it."""

    without: ClassVar[tuple[str, ...]] = (
        *("caption", "caption_dropout", "density", "density_location", "density_scale", "density_preset"),
        *("schedule_shift", "weight", "precondition", "checkpoint_blocks", "compile"),
        *("validate_every", "sample_prompt", "sample_every"),
    )

    learning_rate: float = rate(1e-5)
    decoder_only: bool = setting(
        True, Switch(), "leave the encoder, and so all latents, as they are", decides="flow"
    )
    reconstruction: str = setting(
        "l1", Name(lambda: ("l1", "l2")), "the distance of pictures: l1 or l2", decides="flow"
    )
    kl: float = setting(
        1e-6,
        Number(0),
        "weight of the divergence of the posterior from a normal",
        decides="flow",
        acts=lambda one: not one.decoder_only,
        where="where the encoder is trained",
    )
