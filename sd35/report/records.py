"""What is noted down of a generation."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from PIL import Image
from torch import Tensor

from textenc import Encoding

from ..attention import AttentionMaps
from ..errors import SettingsError
from ..saved.result import Result

Stream = Literal["x", "context"]


class BlockStatistics(NamedTuple):
    """The tokens of one stream after one block, for one image at one step, with the prompt."""

    rms: float  # root of the mean square, over tokens and channels
    largest: float  # the largest magnitude


@dataclass(frozen=True)
class StepRecord:
    """What is kept of one step of the solver. Lists have an entry for each image."""

    number: int
    sigma: float  # where it began
    denoised: Tensor  # (B, 16, h, w), float16 on the CPU: the data that the step heads for
    previews: list[Image.Image]  # `denoised`, decoded, small
    velocities: dict[str, list[float]]
    """Root mean squares: "cond" and "uncond" of the branches, "guidance" of their difference, and "guided" of
    what the solver followed. Without guidance, "cond" and "guided" alone."""


@dataclass
class Records:
    """Everything that `Recorder` notes down of a generation, and the generation's result."""

    sigmas: Tensor  # (steps + 1,)
    encodings: list[Encoding]  # of each image its prompt, and then the negative one
    steps: list[StepRecord] = field(default_factory=list)
    blocks: dict[tuple[int, Stream, int, int], BlockStatistics] = field(default_factory=dict)
    """By block, stream, step and image."""
    attention: AttentionMaps | None = None  # from image to text, with the prompt; None where not recorded
    made: Result | None = None  # None until the last step

    @property
    def result(self) -> Result:
        """What was drawn.

        Raises:
            SettingsError: the generation has not ended.
        """
        if self.made is None:
            raise SettingsError("there is no result before the last step: `Recorder.run` takes them all")
        return self.made
