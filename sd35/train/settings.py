"""What a training run is told, whatever it trains: the table from which options and checks are made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args

from .. import fields
from ..errors import SettingsError
from ..fields import setting
from ..kinds import Kind, Name, Number, Switch, Text, Whole


def _densities() -> tuple[str, ...]:
    from flow.objective import Density  # when a value is checked: torch takes seconds

    return get_args(Density)


def _weights() -> tuple[str, ...]:
    from flow.objective import Weight

    return get_args(Weight)


ADAMS = ("adamw", "adamw8bit")


@dataclass(frozen=True)
class Texts(Kind):
    """Any number of texts; on the command line the option is repeated."""

    argument: ClassVar[Mapping[str, Any]] = {"action": "append", "metavar": "TEXT"}

    def check(self, name: str, value: Any) -> tuple[str, ...]:
        """See `Kind`."""
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, tuple | list):
            raise SettingsError(f"{name} must be texts, got {value!r}")
        return tuple(Text().check(name, one) for one in values)


def rate(default: float) -> Any:
    """The setting of the learning rate, whose default depends on what is trained."""
    return setting(default, Number(0, open=True), "of the optimizer, at its highest", decides="flow")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a run trains. What decides "flow" decides the weights that come out, to the last bit.

    Raises:
        SettingsError: a value that cannot be trained with, or that has no effect beside the others.
    """

    without: ClassVar[tuple[str, ...]] = ()
    """Settings that a way of training does not have."""

    steps: int = setting(1000, Whole(1), "optimizer steps", decides="flow")
    batch_size: int = setting(1, Whole(1), "pictures of a micro-batch", decides="flow")
    accumulate: int = setting(1, Whole(1), "micro-batches of a step, whose gradients add up", decides="flow")
    learning_rate: float = rate(1e-4)
    optimizer: str = setting(
        "adamw",
        Name(lambda: (*ADAMS, "muon")),
        "adamw, adamw8bit (needs bitsandbytes), or for whole models muon",
        decides="flow",
    )
    weight_decay: float = setting(0.01, Number(0), "decoupled, of every weight", decides="flow")
    clip: float = setting(1.0, Number(0, open=True), "the largest norm of all gradients", decides="flow")
    warmup: int = setting(0, Whole(0), "steps in which the learning rate rises", decides="flow")
    schedule: str = setting(
        "cosine",
        Name(lambda: ("cosine", "constant")),
        "of the learning rate after warm-up: cosine (to 0) or constant",
        decides="flow",
    )
    ema: float | None = setting(
        None,
        Number(0, 1),
        "the decay of an average of the weights, which is then what is written; 0.999 for instance",
        decides="flow",
    )
    ema_power: float = setting(
        0.75,
        Number(0, open=True),
        "how fast the average takes up its decay: 1 - (1 + step)^-power",
        decides="flow",
        acts=lambda one: one.ema is not None,
        where="with ema",
    )
    seed: int = setting(0, Whole(0), "of everything that is drawn", decides="flow")

    resolution: int | None = setting(
        None, Whole(16, multiple=16), "side of a square picture; the model's own by default", decides="flow"
    )
    buckets: bool = setting(
        True, Switch(), "keep the shape of pictures, in sizes of about that area", decides="flow"
    )
    caption: str | None = setting(None, Text(), "of every picture that has none of its own", decides="flow")
    caption_dropout: float = setting(
        0.1, Number(0, 1), "share of captions that are replaced by the empty text", decides="flow"
    )
    flip: bool = setting(False, Switch(), "mirror every second picture, by chance", decides="flow")
    skip_unreadable: bool = setting(
        False, Switch(), "leave out pictures that cannot be read, and say which", decides="flow"
    )

    density: str = setting(
        "logit_normal",
        Name(_densities),
        "of noise levels: logit_normal, mode, cosmap or uniform",
        decides="flow",
    )
    density_location: float = setting(
        0.0,
        Number(),
        "of logit_normal: above 0 draws more noise",
        decides="flow",
        acts=lambda one: one.density == "logit_normal",
        where="with density logit_normal",
    )
    density_scale: float = setting(
        1.0,
        Number(),
        "of logit_normal and mode",
        decides="flow",
        acts=lambda one: one.density in ("logit_normal", "mode"),
        where="with density logit_normal or mode",
    )
    schedule_shift: float = setting(
        3.0, Number(0, open=True), "bends noise levels toward noise, as in sampling", decides="flow"
    )
    density_preset: str = setting(
        "paper",
        Name(lambda: ("paper", "diffusers")),
        "whose reading of a draw; diffusers mirrors it",
        decides="flow",
    )
    weight: str = setting(
        "none", Name(_weights), "of the loss: none, sigma_sqrt, cosmap or min_snr", decides="flow"
    )
    precondition: bool = setting(
        False, Switch(), "compare pictures and not velocities, as diffusers and kohya do", decides="flow"
    )

    checkpoint_blocks: bool = setting(
        False, Switch(), "compute blocks again on the way back, to save memory", decides="speed"
    )
    compile: bool = setting(False, Switch(), "compile each block", decides="speed")

    save_every: int = setting(250, Whole(1), "steps between two saves", decides="output")
    validate_every: int | None = setting(
        None, Whole(1), "steps between two validations, at fixed noise levels", decides="output"
    )
    sample_prompt: tuple[str, ...] = setting(
        (), Texts(), "draw this on the way, into the folder samples; may be repeated", decides="output"
    )
    sample_every: int = setting(
        250,
        Whole(1),
        "steps between two such pictures",
        decides="output",
        acts=lambda one: bool(one.sample_prompt),
        where="with sample_prompt",
    )
    tensorboard: bool = setting(
        False, Switch(), "also log for TensorBoard (needs the package tensorboard)", decides="output"
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.optimizer not in ADAMS and not self.trains_whole:
            raise SettingsError(f"{self.optimizer} is for whole models: choose {' or '.join(ADAMS)}")
        if self.warmup >= self.steps:
            raise fields.fault(self, ["warmup"], f" of {self.warmup} leaves nothing of {self.steps} steps")

    @property
    def at_once(self) -> int:
        """Pictures whose activations are in memory at once."""
        return self.batch_size

    @property
    def trains_whole(self) -> bool:
        """Whether all weights of a network are trained, and no LoRA."""
        return False


Way = TypeVar("Way", bound=Training)


def training_of(way: type[Way], given: Mapping[str, Any]) -> Way:
    """The settings of a way of training, of what a user gave.

    Raises:
        SettingsError: an unknown name, a value that cannot be trained with, or one without effect.
    """
    if idle := sorted(given.keys() & set(way.without)):
        raise SettingsError(f"{', '.join(idle)} has no effect on this way of training: leave it out")
    return fields.build(way, given)
