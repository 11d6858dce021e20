"""One generation: prompts, noise, and the steps from noise to latents."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

import flow
from flow import companion_of
from textenc import Encoding

from .guided import stepped, velocity_of
from .noise import draw_noise, generators
from .result import Result
from .settings import Settings

if TYPE_CHECKING:
    from .pipeline import Pipeline


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

    def __init__(
        self, pipe: "Pipeline", settings: Settings, encodings: list[Encoding], noise: Tensor | None
    ) -> None:
        self._pipe = pipe
        self._last: flow.Step | None = None
        self.settings = settings
        self.encodings = encodings
        self.velocity = velocity_of(pipe.mmdit, settings, encodings)
        self.sigmas = settings.sigmas
        self._shape = pipe.latents_shape(settings.width, settings.height)
        self.noise = draw_noise(generators(settings.seeds), self._shape) if noise is None else noise

    def __len__(self) -> int:
        """How many steps the schedule has."""
        return self.settings.steps

    def __iter__(self) -> Iterator[flow.Step]:
        """Run the solver, one step at a time.

        Raises:
            NonFiniteError: the transformer gave NaN or infinity.
            FlowError: what the solver refuses.
        """
        solver = flow.SOLVERS[self.settings.solver]
        options: dict[str, Any] = dict(self.settings.solver_options)
        if solver.stochastic:
            options["generator"] = generators(self.settings.seeds)
            draw_noise(options["generator"], self._shape)  # they go on where the noise ended
        steps = solver.run(self.velocity, self.noise.to(self._pipe.device), self.sigmas, **options)
        for step in stepped(steps, range(len(self)), self.velocity):
            self._last = step
            yield step

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the prompts were read: what was cut, above all."""
        each = self.settings.images_per_prompt
        names = [f"prompt {index}" for index in range(len(self.settings.prompts))]
        read = [*zip(names, self.encodings[:-1:each], strict=True), ("negative prompt", self.encodings[-1])]
        return tuple(f"{name}, {note.encoder}: {note.message}" for name, one in read for note in one.notes)

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
            image=self._pipe.decode(latents).detach().cpu(),
            latents=latents.detach().cpu(),
            noise=self.noise,
            settings=settings,
            notes=self.notes,
            companion=companion_of(
                self._last,
                self.sigmas,
                settings.solver,
                extra=field_of(settings),
                **settings.solver_options,
            ),
        )


def field_of(settings: Settings) -> dict[str, Any]:
    """What decides the velocity beside x and sigma, in JSON values: undoing a generation needs the same."""
    return {
        "prompts": [asdict(prompt) for prompt in settings.prompts],
        "negative": asdict(settings.negative),
        "guidance_scale": settings.guidance_scale,
        "guidance": settings.guidance.to_dict(),
        "policy": settings.policy,
        "missing": settings.missing,
    }
