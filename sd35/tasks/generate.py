"""From a prompt to pictures: the request, the steps from noise to latents, the result."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

import flow
from flow import companion_of
from textenc import Encoding
from textenc.prompt import PromptLike

from ..errors import SettingsError
from ..model import Model
from ..noise import draw_noise, generators
from ..saved.result import Result
from ..saved.state import State
from ..settings import LATENT, Settings, settings_of
from ..velocity import velocity_of
from .steps import take_steps

Noise: TypeAlias = Tensor | np.ndarray | State | str | Path
"""(B, 16, h, w) to begin with, or a saved state that holds it, or the path of one."""


NOTATION = re.compile(r"\([^()]+:\s*-?[\d.]+\s*\)|\bBREAK\b|<(?:lora|lyco|hypernet):[^>]*>")
"""What other programs read in a prompt, and the encoders read literally."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """A request to draw pictures, checked as far as it can be without a model.

    Raises:
        SettingsError: noise that does not fit, or settings without a seed and without noise.
    """

    settings: Settings
    noise: Tensor | None = None
    """(B, 16, h, w), float32 on the CPU; None draws it from the seed."""

    def __post_init__(self) -> None:
        settings, noise = self.settings, self.noise
        if noise is None and settings.seed is None:
            raise SettingsError("these settings have no seed, since their noise was given: pass noise=")
        if noise is not None and flow.SOLVERS[settings.solver].stochastic:
            raise SettingsError(f"{settings.solver} draws from the seed: it cannot start from given noise")

    @classmethod
    def of(
        cls,
        prompt: PromptLike | Sequence[PromptLike] | None = None,
        given: Mapping[str, Any] | None = None,
        *,
        base: Settings | None = None,
        noise: Noise | None = None,
    ) -> "Generate":
        """The request of what a user gave.

        Args:
            prompt: what to draw; None leaves it to `base`.
            given: settings by name.
            base: those of an earlier picture, in which they change what they name.
            noise: to begin with; it decides the size, and takes the place of a seed.

        Raises:
            SettingsError: no prompt, and what `Settings` and `Generate` refuse.
        """
        given = dict(given or {})
        if prompt is not None:
            given["prompts"] = prompt
        if "prompts" not in given and base is None:
            raise SettingsError(
                'what should be drawn? Give a prompt: sd35 generate "a red circle on the left"'
            )
        if noise is None:
            return cls(settings=settings_of(given, base))
        noise = as_noise(noise)
        if given.get("seed") is not None:
            raise SettingsError("seed has no effect beside noise that is given: leave one of them out")
        if base is None or (base.width, base.height) == (None, None):
            sizes = dict(zip(("height", "width"), (LATENT * side for side in noise.shape[2:]), strict=True))
            given = sizes | given
        return cls(settings=settings_of({**given, "seed": None}, base), noise=noise)


def as_noise(noise: Noise) -> Tensor:
    """Noise in any form that a user has it, (B, 16, h, w), float32 on the CPU.

    Raises:
        OSError: there is no such file.
        SettingsError: a state that holds none, or another type or shape.
    """
    if isinstance(noise, str | Path):
        noise = State.load(noise)
    if isinstance(noise, State):
        if noise.noise is None:
            raise SettingsError(
                "this state holds no noise to begin with: sd35 invert -o FILE writes one that does"
            )
        noise = noise.noise
    if isinstance(noise, np.ndarray):
        noise = torch.from_numpy(noise)
    if not isinstance(noise, Tensor) or noise.ndim != 4 or not noise.is_floating_point():
        what = f"{noise.dtype} {tuple(noise.shape)}" if isinstance(noise, Tensor) else type(noise).__name__
        raise SettingsError(f"noise must be floats (B, 16, h, w), got {what}")
    return noise.detach().float().cpu()


class Generation:
    """A generation that is ready to run: checked, prompts encoded, noise drawn, nothing solved yet.

        generation = pipe.steps(sd35.Settings(prompts=...))
        for step in generation:                     # flow.Step: .x, .velocity, .denoised, .sigma_next
            preview = pipe.decode(step.denoised)
        result = generation.result()

    Iterating again runs it again, to the same end. `Pipeline.steps` makes one.

    Attributes:
        settings: complete, with the size and what the pictures are made with.
        encodings: for each image, its prompt as the transformer reads it; and then the negative prompt.
        velocity: velocity(x, sigma), guided.
        sigmas: noise levels, (steps + 1,).
        noise: (B, 16, h, w), float32 on the CPU.
    """

    def __init__(self, model: Model, request: Generate, *, bar: str | None = None) -> None:
        """Check the request against the model, encode its prompts and draw its noise.

        Raises:
            SettingsError: what the model cannot draw.
        """
        self._model, self._bar = model, bar
        self._last: flow.Step | None = None
        self.settings = settings = model.complete(request.settings)
        if request.noise is not None:
            model.check_noise(request.noise, settings)
        self.encodings: list[Encoding] = model.encode_each(settings)
        self.velocity = velocity_of(model.mmdit, settings, self.encodings)
        self.sigmas = settings.sigmas
        self._shape = model.latents_shape(settings.width, settings.height)
        self.noise: Tensor = (
            draw_noise(generators(settings.seeds), self._shape) if request.noise is None else request.noise
        )

    def __len__(self) -> int:
        """How many steps the schedule has."""
        return self.settings.steps

    def __iter__(self) -> Iterator[flow.Step]:
        """Run the solver, one step at a time.

        Raises:
            NonFiniteError: the transformer gave NaN or infinity; told after the last step.
            FlowError: what the solver refuses.
        """
        solver = flow.SOLVERS[self.settings.solver]
        options: dict[str, Any] = dict(self.settings.solver_options)
        if solver.stochastic:
            options["generator"] = generators(self.settings.seeds)
            draw_noise(options["generator"], self._shape)  # they go on where the noise ended
        steps = solver.run(self.velocity, self.noise.to(self._model.device), self.sigmas, **options)
        for step in take_steps(self._model, steps, self.sigmas, bar=self._bar):
            self._last = step
            yield step

    def run(self) -> Result:
        """Take all steps, and give the result."""
        for _ in self:
            pass
        return self.result()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the prompts were read: what was cut, above all."""
        each = self.settings.images_per_prompt
        names = [f"prompt {index}" for index in range(len(self.settings.prompts))]
        read = [*zip(names, self.encodings[:-1:each], strict=True), ("negative prompt", self.encodings[-1])]
        cut = [f"{name}, {note.encoder}: {note.message}" for name, one in read for note in one.notes]
        marks = [
            f"{name}: {found[0]} is read as it stands: weights, BREAK and <lora:...> in prompts are the "
            "notation of other programs"
            for name, one in read
            if (found := NOTATION.search(one.prompts[0].text))
        ]
        return (*cut, *marks)

    def result(self) -> Result:
        """The pictures of the last step that was taken.

        Raises:
            RuntimeError: no step was taken yet.
            NonFiniteError: the autoencoder gave NaN or infinity.
        """
        if self._last is None:
            raise RuntimeError("there is no result before the first step: iterate over the generation")
        settings, latents = self.settings, self._last.x
        return Result(
            image=self._model.decode(latents).detach().cpu(),
            latents=latents.detach().cpu(),
            noise=self.noise,
            settings=settings,
            notes=self.notes,
            companion=companion_of(
                self._last, self.sigmas, settings.solver, extra=settings.flow, **settings.solver_options
            ),
        )


def generate(model: Model, request: Generate, *, progress: bool = False) -> Result:
    """Draw the pictures of a request.

    Raises:
        SettingsError: what the model cannot draw, before work starts.
        NonFiniteError: a stage computed NaN or infinity.
    """
    return Generation(model, request, bar="" if progress else None).run()
