"""From a prompt to pictures: the request, the steps from noise to latents, the result."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

import flow
from flow import companion_of, interpolate
from textenc import Encoding
from textenc.prompt import PromptLike

from ..cache import block_cache, check_cache, velocity_cache
from ..conditions import Condition
from ..errors import SettingsError
from ..fitting import pasted
from ..memory import modulation_first, positions_of
from ..model import Model
from ..noise import draw_noise, generators
from ..presets import UNKNOWN, Variant, below_one, usual_numbers
from ..saved.result import Result
from ..saved.state import State
from ..schedules import made_for_another
from ..settings import Settings, settings_of
from ..units import LATENT
from ..velocity import velocity_of
from .inpaint import beside, keeping, latents_of
from .inputs import NOTHING, Inputs, check_inputs, take_inputs
from .steer import steer
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
    inputs: Inputs = NOTHING
    """The pictures that it starts from or is steered by."""
    notes: tuple[str, ...] = ()
    """What a user should know of the request itself."""

    def __post_init__(self) -> None:
        settings, noise = self.settings, self.noise
        if bool(settings.image) != (self.inputs.image is not None):
            raise SettingsError("these settings have an image, which was not read: use Generate.of")
        check_inputs(self.inputs, settings)
        check_cache(settings)
        if settings.mask and flow.SOLVERS[settings.solver].stochastic:
            raise SettingsError(
                f"{settings.solver} draws noise at every step, which what the mask keeps does not take part "
                "in: choose a solver without"
            )
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
        variant: Variant = UNKNOWN,
        preset: str | None = None,
    ) -> "Generate":
        """The request of what a user gave.

        Args:
            prompt: what to draw; None leaves it to `base`.
            given: settings by name.
            base: those of an earlier picture, in which they change what they name.
            noise: to begin with; it decides the size, and takes the place of a seed.
            variant: the model that it is for, whose own numbers stand where nothing is said.
            preset: whose numbers these are, "reference" or "diffusers"; None is the reference's.

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
        numbers, notes = usual_numbers(given, variant, preset, saved=base is not None)
        notes += made_for_another(given)
        if noise is None:
            given, inputs = take_inputs(given, base)
            settings = settings_of(given, base, numbers)
            return cls(settings=settings, inputs=inputs, notes=(*notes, *inputs.notes))
        noise = as_noise(noise)
        if given.get("seed") is not None:
            raise SettingsError("seed has no effect beside noise that is given: leave one of them out")
        if base is None or (base.width, base.height) == (None, None):
            sizes = dict(zip(("height", "width"), (LATENT * side for side in noise.shape[2:]), strict=True))
            given = sizes | given
        given, inputs = take_inputs(given, base)
        settings = settings_of({**given, "seed": None}, base, numbers)
        return cls(settings=settings, noise=noise, inputs=inputs, notes=(*notes, *inputs.notes))


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
        sigmas: the noise levels that are run, (steps + 1,); fewer from an image.
        noise: (B, 16, h, w), float32 on the CPU.
        start: (B, 16, h, w), the state at the first level: the noise, or what of the image is under it.
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
        self._request, inputs = request, request.inputs
        self.settings, steering = steer(model, settings, inputs)
        self.encodings: list[Encoding] = model.encode_each(settings)
        self.sigmas = settings.levels
        self._shape = model.latents_shape(settings.width, settings.height)
        self.noise: Tensor = (
            draw_noise(generators(settings.seeds), self._shape) if request.noise is None else request.noise
        )
        conditions: list[Condition] = [*beside(model, inputs), *steering, *block_cache(model.mmdit, settings)]
        self._guided = velocity_of(
            model.mmdit, settings, self.encodings, conditions, velocity_cache(settings)
        )
        self.velocity: flow.Velocity = self._guided
        self.start = self.noise
        if inputs.image is not None:
            latents = latents_of(model, inputs.image).cpu()
            self.start = interpolate(latents.expand_as(self.noise), self.noise, self.sigmas[0])
            self.velocity = keeping(self.velocity, model, settings, inputs, latents, self.noise)

    def __repr__(self) -> str:
        count, size = self.settings.images, f"{self.settings.width} x {self.settings.height}"
        return f"Generation({len(self)} steps of {count} x {size}, {self.settings.prompts[0].text!r})"

    def __len__(self) -> int:
        """How many steps are run."""
        return len(self.sigmas) - 1

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
        steps = solver.run(self.velocity, self.start.to(self._model.device), self.sigmas, **options)
        for step in take_steps(self._model, steps, self.sigmas, bar=self._bar):
            self._last = step
            yield step

    def run(self) -> Result:
        """Take all steps, and give the result."""
        with ExitStack() as stack:
            if self._model.plan.release:
                settings, sigmas = self.settings, self.sigmas.to(self.start.dtype)
                options = (settings.images, settings.solver, sigmas)
                stack.enter_context(modulation_first(self._guided, *options, **settings.solver_options))
                stack.enter_context(positions_of(self._model.mmdit, *self._shape[1:]))
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
        low = below_one(self.settings.guidance_scale)
        return (*self._request.notes, *([low] if low else []), *cut, *marks)

    def result(self) -> Result:
        """The pictures of the last step that was taken.

        Raises:
            RuntimeError: no step was taken yet.
            NonFiniteError: the autoencoder gave NaN or infinity.
        """
        if self._last is None:
            raise RuntimeError("there is no result before the first step: iterate over the generation")
        settings, latents, inputs = self.settings, self._last.x, self._request.inputs
        image = self._model.decode(latents).detach().cpu()
        if settings.paste and inputs.image is not None and inputs.mask is not None:
            image = pasted(image, inputs.image, inputs.mask, settings.feather)
        return Result(
            image=image,
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
