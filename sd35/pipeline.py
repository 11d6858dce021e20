"""From a prompt to a picture: the parts of Stable Diffusion 3.5, joined.

SD3 paper (Esser et al. 2024, arXiv:2403.03206), figure 2:

    prompt ─ text encoders ─▶ context, pooled ─┐
    seed ───────────────────▶ noise ─ transformer, at each step ─▶ latents ─ autoencoder ─▶ picture
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from flow import SOLVERS, Companion
from textenc.prompt import PromptLike, as_prompts

from .editing import Control, Edited, EditMethod, aimed, edit, reaches_noise
from .errors import SettingsError
from .generation import Generation
from .given import opened
from .guidance import PLAIN, Guidance
from .invert import Inverted, invert
from .model import Model
from .report import Recorder
from .result import Result
from .settings import Missing, Preset, Settings
from .size import check_size
from .state import State


class Pipeline(Model):
    """A model that draws pictures, inverts them and edits them. `sd35.load` makes one."""

    def generate(
        self,
        prompt: PromptLike | Sequence[PromptLike],
        *,
        negative: PromptLike = "",
        seed: int = 0,
        steps: int = 28,
        guidance_scale: float = 4.5,
        guidance: Guidance = PLAIN,
        width: int | None = None,
        height: int | None = None,
        images_per_prompt: int = 1,
        solver: str = "euler",
        solver_options: dict[str, Any] | None = None,
        schedule: Preset = "reference",
        schedule_shift: float = 3.0,
        policy: str = "reference",
        missing: Missing = "zeros",
        batch_size: int = 1,
        noise: Tensor | None = None,
        progress: bool = False,
        record: bool = False,
    ) -> Result:
        """Draw pictures.

        Args:
            prompt: one or several; a text each, or a `textenc.Prompt` with other texts for some encoders.
            negative: what to move away from.
            seed: 0 to 2³² - 1; image k of a batch is drawn from seed + k. Not read where `noise` is given.
            steps: at least 1.
            guidance_scale: how strongly to follow the prompt; 1 is no guidance, at half the cost.
            guidance: how: its interval, rescaling, CFG-Zero*, skip-layer guidance, ...
            width: in pixels, a multiple of 16; None is the size the model was trained at.
            height: likewise.
            images_per_prompt: images of each prompt, one after the other.
            solver: a name in `flow.SOLVERS`.
            solver_options: keyword arguments of that solver.
            schedule: whose table of noise levels: "reference", "diffusers" or "linear"; see `flow.sigmas`.
            schedule_shift: how far the levels are bent toward noise.
            policy: how prompts are read, a name in `textenc.POLICIES`.
            missing: what stands for an encoder that is not there; see `TextEncoder.encode`.
            batch_size: images that go through the transformer together. With 1, image k of a batch equals
                that image alone to the last bit; with more, to rounding, and an accelerator is used better.
            noise: (B, 16, height / 8, width / 8) to start from, one for each image.
            progress: show a bar on stderr.
            record: note down every step for `Result.report`, which decodes each: the pictures are the same.

        Raises:
            ValueError: a setting that cannot be worked with, before work starts: SettingsError, or what
                textenc says of a prompt.
            NonFiniteError: a stage computed NaN or infinity.
        """
        if noise is not None and noise.ndim == 4 and width is None and height is None:
            height, width = (self.vae.config.factor * side for side in noise.shape[2:])
        settings = Settings(
            prompts=as_prompts(prompt),
            negative=as_prompts([negative])[0],
            seed=seed if noise is None else None,
            steps=steps,
            guidance_scale=guidance_scale,
            guidance=guidance,
            width=width,
            height=height,
            images_per_prompt=images_per_prompt,
            solver=solver,
            solver_options=solver_options or {},
            schedule=schedule,
            schedule_shift=schedule_shift,
            policy=policy,
            missing=missing,
            batch_size=batch_size,
        )
        return self.run(settings, noise=noise, progress=progress, record=record)

    def run(
        self,
        settings: Settings,
        *,
        noise: Tensor | None = None,
        progress: bool = False,
        record: bool = False,
    ) -> Result:
        """Draw pictures by their settings, those of an earlier one for instance; see `generate`."""
        generation = self.steps(settings, noise=noise)
        recorder = Recorder(self, generation) if record else None
        for _ in tqdm(generation if recorder is None else recorder, unit="step", disable=not progress):
            pass
        result = generation.result()
        return result if recorder is None else replace(result, recording=recorder.recording)

    def steps(self, settings: Settings, *, noise: Tensor | None = None) -> Generation:
        """Prepare a generation that the caller steps through; see `Generation` and `generate`."""
        settings = self.complete(settings)
        if noise is None and settings.seed is None:
            raise SettingsError("these settings have no seed, since their noise was given: pass noise=")
        if noise is not None:
            self.check_noise(noise, settings)
            noise = noise.detach().float().cpu()
        return Generation(self, settings, self.encode_each(settings), noise)

    def complete(self, settings: Settings) -> Settings:
        """Fill in what the settings left to the model, and record what the pictures are made with.

        Raises:
            SettingsError: the size is larger than the model draws.
        """
        width = self.size.width if settings.width is None else settings.width
        height = self.size.height if settings.height is None else settings.height
        check_size(width, height, self.mmdit.config, self.vae.config)
        computed = {part: str(dtype).removeprefix("torch.") for part, dtype in self.dtypes.items()}
        made_with = {
            "sd35": release(),
            "torch": torch.__version__,
            "device": self.device.type,
            "dtype": computed["mmdit"],
            "t5": "yes" if self.text is not None and self.text.t5 is not None else "no",
        }
        made_with |= {f"{part}_dtype": name for part, name in computed.items() if name != computed["mmdit"]}
        made_with |= {f"{part}_source": source for part, source in self.sources.items()}
        return replace(settings, width=width, height=height, model=self.model, made_with=made_with)

    def invert(
        self,
        data: Tensor | Image.Image | State,
        prompt: PromptLike | Sequence[PromptLike] | None = None,
        *,
        method: str = "exact",
        method_options: Mapping[str, Any] | None = None,
        companion: Companion | None = None,
        noise: Tensor | None = None,
        refine_steps: int = 0,
        measure: bool = True,
        progress: bool = False,
        **settings: Any,
    ) -> Inverted:
        """Find the noise that pictures were drawn from, and measure what is lost on the way.

        The settings must be the generation's: another prompt or guidance scale is another flow.

        Args:
            data: pictures (B, 3, H, W) in [-1, 1], one Pillow picture, latents (B, 16, h, w), or a saved
                state (`Result.state`), which needs nothing else. Eight bits and the autoencoder lose more
                than a good method does: latents are better.
            prompt: of the generation: one for all pictures, or one for each. A state has its own.
            method: a name in `flow.METHODS`. With a companion, "exact" undoes the generation, and the others
                have no use for it.
            method_options: keyword arguments of the method.
            companion: what a reversible solver left, `Result.companion`.
            noise: the true noise, where it is known, to compare with. A state may have its own.
            refine_steps: steps of `vae.refine`, by which the latents of a picture are improved.
            measure: draw again from the noise that was found, to see what the inverse of the solver misses.
                To hooks, its steps have the numbers of those that were undone.
            progress: show a bar on stderr.
            settings: the others that `generate` takes: negative, steps, guidance_scale, solver, ...; and
                seed, where it is known: its noise is then compared with. They change those of a state, which
                is told in the notes.

        Raises:
            ValueError: the data are none of this model's, settings that do not fit, or a companion of
                another generation; before work starts.
            NonFiniteError: a stage computed NaN or infinity.
        """
        given, of, companion, saved = opened(data, prompt, companion, settings)
        if noise is None and of.seed is None and isinstance(data, State):
            noise = data.noise
        return invert(
            self,
            given,
            of,
            saved=saved,
            method=method,
            options=method_options,
            companion=companion,
            noise=noise,
            refine_steps=refine_steps,
            measure=measure,
            progress=progress,
        )

    def edit(
        self,
        data: Tensor | Image.Image | State,
        prompt: PromptLike | Sequence[PromptLike],
        source_prompt: PromptLike | Sequence[PromptLike] | None = None,
        *,
        method: EditMethod = "inversion",
        strength: float = 1.0,
        seed: int | None = None,
        guidance_scale: float | None = None,
        source_guidance_scale: float | None = None,
        control: Control | None = None,
        average: int = 1,
        accuracy: float | None = None,
        companion: Companion | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Edited:
        """Draw pictures again under another prompt, keeping the rest.

        Args:
            data: pictures (B, 3, H, W) in [-1, 1], one Pillow picture, latents (B, 16, h, w), or a saved
                state, which has its prompt and settings.
            prompt: what is wanted: one for all pictures, or one for each.
            source_prompt: what is there, likewise.
            method: "inversion", "flow_edit" or "rf_inversion"; see `sd35.editing`.
            strength: how much of the schedule to run, in (0, 1]; less keeps more of the picture.
            seed: of the noise that flow_edit and rf_inversion draw; None takes the picture's, or 0.
            guidance_scale: for `prompt`; None takes the picture's.
            source_guidance_scale: for `source_prompt`; None takes the state's, or 4.5.
            control: of rf_inversion alone.
            average: of flow_edit alone, the noises that a step averages over.
            accuracy: of the exact inverse, for the method inversion; None takes that of `invert`.
            companion: of a reversible solver, for the method inversion at strength 1.
            progress: show a bar on stderr.
            settings: the others that `generate` takes, of both halves: negative, steps, solver, ...

        Raises:
            ValueError: the data are none of this model's, or settings that do not fit.
            NonFiniteError: a stage computed NaN or infinity.
        """
        if source_guidance_scale is not None:
            settings["guidance_scale"] = source_guidance_scale
        given, source, its, _ = opened(data, source_prompt, companion, settings)
        if companion is None and reaches_noise(method, strength):
            companion = its  # the state's; other ways have no use for it
        return edit(
            self,
            given,
            source,
            aimed(source, as_prompts(prompt), seed, guidance_scale),
            method=method,
            strength=strength,
            companion=companion,
            control=control,
            average=average,
            accuracy=accuracy,
            progress=progress,
        )

    def check_noise(self, noise: Tensor, settings: Settings) -> None:
        """See that noise is of the size that the settings draw, and can be begun with.

        Raises:
            SettingsError: it is not.
        """
        expected = (settings.images, *self.latents_shape(settings.width, settings.height))
        if tuple(noise.shape) != expected or not noise.is_floating_point():
            raise SettingsError(f"noise must be floats {expected}, got {noise.dtype} {tuple(noise.shape)}")
        if SOLVERS[settings.solver].stochastic:
            raise SettingsError(f"{settings.solver} draws from the seed: it cannot start from given noise")


def release() -> str:
    """The version of this project, or "source" where it was not installed."""
    try:
        return version("sd35")
    except PackageNotFoundError:
        return "source"
