"""From a prompt to a picture: the parts of Stable Diffusion 3.5, joined.

SD3 paper (Esser et al. 2024, arXiv:2403.03206), figure 2:

    prompt ─ text encoders ─▶ context, pooled ─┐
    seed ───────────────────▶ noise ─ transformer, at each step ─▶ latents ─ autoencoder ─▶ picture
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from flow import SOLVERS, Companion
from mmdit import MMDiT
from textenc import Encoding, TextEncoder
from textenc.prompt import PromptLike, as_prompts
from vae import VAE
from vae.image import to_tensor
from weights import load_mmdit, load_textenc, load_vae, resolve

from .device import as_device
from .editing import Control, Edited, EditMethod, aimed, edit
from .errors import SettingsError, check_finite
from .generation import Generation
from .guided import GuidedVelocity
from .invert import Inverted, invert, opened
from .result import Result
from .settings import Missing, Preset, Settings
from .size import Size, check_size, native_size
from .state import State


def load(
    source: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    text: bool | str | Path = True,
    t5: bool | str | Path = True,
    vae: str | Path | None = None,
    one_by_one: bool = False,
) -> "Pipeline":
    """Load a model: transformer, autoencoder, text encoders and their tokenizers.

    Args:
        source: "tiny", a .safetensors file, a folder in the official or the diffusers layout, or
            "owner/name[/file][@revision]" on the Hugging Face Hub.
        device: where everything runs; "auto" is the fastest there is.
        dtype: what everything is computed in. None means float32 on a CPU, which has no fast arithmetic in
            less and gains accuracy, and the files' own dtype elsewhere, which is what the models are run in.
        text: False leaves the text encoders out, for prompts that are encoded already; another source takes
            them and their tokenizers from there.
        t5: False leaves T5 out, which is 9.8 GB in the released models and of use for long prompts and for
            writing; another source takes it from there.
        vae: another source for the autoencoder.
        one_by_one: load each text encoder when prompts are encoded and free it before the next, so that only
            one is in memory at a time.

    Raises:
        SettingsError: there is no such device.
        CheckpointError: its subclasses tell a bad source, a missing part, a damaged file, and what the Hub
            refused. What headers can tell is told before weights are read.
    """
    device = as_device(device)
    dtype = torch.float32 if dtype is None and device.type == "cpu" else dtype
    found = resolve(source, ["mmdit"] if vae is not None else ["mmdit", "vae"])
    transformer = found.component("mmdit")
    if vae is None:
        found.component("vae")
    encoders = None
    if text is not False:
        encoders = load_textenc(source if text is True else text, device, dtype, t5=t5, one_by_one=one_by_one)
    autoencoder = load_vae(source if vae is None else vae, device, dtype)
    mmdit = load_mmdit(source, device, dtype)
    return Pipeline(mmdit, autoencoder, encoders, model=str(source), size=native_size(transformer))


@dataclass
class Pipeline:
    """A model that draws pictures. `load` makes one; its parts may be replaced by others that fit."""

    mmdit: MMDiT
    vae: VAE
    text: TextEncoder | None
    """None where prompts come encoded."""
    model: str
    """The name of the source, for the settings of pictures."""
    size: Size
    """Width and height of a picture where none are asked for: what the model was trained at."""

    @property
    def device(self) -> torch.device:
        """Where the transformer is; the other parts are expected there too."""
        return self.mmdit.pos_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in. States, guidance and noise are float32 always."""
        return self.mmdit.context_embedder.weight.dtype

    def generate(
        self,
        prompt: PromptLike | Sequence[PromptLike],
        *,
        negative: PromptLike = "",
        seed: int = 0,
        steps: int = 28,
        guidance_scale: float = 4.5,
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
    ) -> Result:
        """Draw pictures.

        Args:
            prompt: one or several; a text each, or a `textenc.Prompt` with other texts for some encoders.
            negative: what to move away from.
            seed: 0 to 2³² - 1; image k of a batch is drawn from seed + k. Not read where `noise` is given.
            steps: at least 1.
            guidance_scale: how strongly to follow the prompt; 1 is no guidance, at half the cost.
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
        return self.run(settings, noise=noise, progress=progress)

    def run(self, settings: Settings, *, noise: Tensor | None = None, progress: bool = False) -> Result:
        """Draw pictures by their settings, those of an earlier one for instance; see `generate`."""
        generation = self.steps(settings, noise=noise)
        for _ in tqdm(generation, unit="step", disable=not progress):
            pass
        return generation.result()

    def steps(self, settings: Settings, *, noise: Tensor | None = None) -> Generation:
        """Prepare a generation that the caller steps through; see `Generation` and `generate`."""
        settings = self.complete(settings)
        if noise is None and settings.seed is None:
            raise SettingsError("these settings have no seed, since their noise was given: pass noise=")
        if noise is not None:
            self._check_noise(noise, settings)
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
        made_with = {
            "sd35": release(),
            "torch": torch.__version__,
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "t5": "yes" if self.text is not None and self.text.t5 is not None else "no",
        }
        return replace(settings, width=width, height=height, model=self.model, made_with=made_with)

    def velocity(
        self,
        prompt: PromptLike | Sequence[PromptLike] | Encoding,
        negative: PromptLike | Encoding = "",
        guidance_scale: float = 4.5,
        *,
        policy: str = "reference",
        missing: Missing = "zeros",
        batch_size: int = 1,
        **guidance: Any,
    ) -> GuidedVelocity:
        """Join the transformer with a prompt, as the velocity that solvers and inverses of `flow` follow.

        Args:
            prompt: one for any number of samples, or one for each; or what `encode_prompt` gave.
            negative: what to move away from; or what `encode_prompt` gave.
            guidance_scale: 1 is no guidance, at half the cost.
            policy: as in `generate`.
            missing: as in `generate`.
            batch_size: as in `generate`.
            guidance: `combine`, `adjust` and `interval` of `flow.guided`.
        """
        if isinstance(prompt, Encoding):
            cond = [prompt.select(index) for index in range(len(prompt))]
        else:
            cond = [self.encode_prompt(one, policy=policy, missing=missing) for one in as_prompts(prompt)]
        if not isinstance(negative, Encoding):
            negative = self.encode_prompt(negative, policy=policy, missing=missing)
        return GuidedVelocity(self.mmdit, cond, negative, guidance_scale, batch_size=batch_size, **guidance)

    def encode_prompt(
        self,
        prompt: PromptLike | Sequence[PromptLike],
        *,
        policy: str = "reference",
        missing: Missing = "zeros",
    ) -> Encoding:
        """Encode prompts to what the transformer reads; see `TextEncoder.encode`.

        Raises:
            SettingsError: this pipeline has no text encoders.
            NonFiniteError: an encoder gave NaN or infinity.
        """
        if self.text is None:
            raise SettingsError(
                "this pipeline has no text encoders: give encoded prompts, or load it with them"
            )
        encoding = self.text.encode(prompt, policy=policy, missing=missing)
        for tensor in (encoding.context, encoding.pooled):
            check_finite(tensor, "text encoders", tensor.dtype)
        return encoding.to(self.device)

    def encode(self, image: Tensor | Image.Image) -> Tensor:
        """Latents of an image (B, 3, H, W) in [-1, 1], or of a picture: the mean, (B, 16, H/8, W/8), float32.

        Raises:
            ValueError: H or W is no multiple of 8, or the shape is another.
            NonFiniteError: the autoencoder gave NaN or infinity.
        """
        image = to_tensor(image) if isinstance(image, Image.Image) else image
        latents = torch.cat([self.vae.encode(one) for one in image.to(self.device).float().split(1)])
        return check_finite(latents, "autoencoder (encoding)", _dtype_of(self.vae))

    def decode(self, latents: Tensor) -> Tensor:
        """Image of latents (B, 16, h, w), one at a time: (B, 3, 8h, 8w), nominally in [-1, 1], float32.

        Raises:
            ValueError: the shape is another.
            NonFiniteError: the autoencoder gave NaN or infinity.
        """
        image = torch.cat([self.vae.decode(one) for one in latents.to(self.device).float().split(1)])
        return check_finite(image, "autoencoder (decoding)", _dtype_of(self.vae))

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
            method: a name in `flow.METHODS`; not read where there is a companion.
            method_options: keyword arguments of the method.
            companion: what a reversible solver left, `Result.companion`: the generation is then undone.
            noise: the true noise, where it is known, to compare with.
            refine_steps: steps of `vae.refine`, by which the latents of a picture are improved.
            measure: draw again from the noise that was found, to see what the inverse of the solver misses.
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
            control: of rf_inversion.
            average: noises that a step of flow_edit averages over.
            companion: of a reversible solver, for the method inversion at strength 1.
            progress: show a bar on stderr.
            settings: the others that `generate` takes, of both halves: negative, steps, solver, ...

        Raises:
            ValueError: the data are none of this model's, or settings that do not fit.
            NonFiniteError: a stage computed NaN or infinity.
        """
        if source_guidance_scale is not None:
            settings["guidance_scale"] = source_guidance_scale
        given, source, companion, _ = opened(data, source_prompt, companion, settings)
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
            progress=progress,
        )

    def latents_shape(self, width: int | None, height: int | None) -> tuple[int, int, int]:
        """The shape (16, h, w) of the latents of one picture; None is the model's own size."""
        factor = self.vae.config.factor
        width, height = width or self.size.width, height or self.size.height
        return self.mmdit.config.channels, height // factor, width // factor

    def encode_each(self, settings: Settings) -> list[Encoding]:
        """Encode the prompt of each image, and then the negative one.

        Each is encoded by itself, since T5's padding and the rounding of matrix products would make it depend
        on its neighbours; all in one call where encoders are loaded for each, which would take too long.
        """
        prompts = [*settings.prompts, settings.negative]
        policy, missing = settings.policy, settings.missing
        if self.text is not None and self._loads_encoders():
            together = self.encode_prompt(prompts, policy=policy, missing=missing)
            each = [together.select(index) for index in range(len(prompts))]
        else:
            unique = {one: self.encode_prompt(one, policy=policy, missing=missing) for one in set(prompts)}
            each = [unique[one] for one in prompts]
        *cond, uncond = each
        return [one for one in cond for _ in range(settings.images_per_prompt)] + [uncond]

    def _loads_encoders(self) -> bool:
        encoders = (self.text.clip_l, self.text.clip_g, self.text.t5) if self.text is not None else ()
        return any(one is not None and not isinstance(one, nn.Module) for one in encoders)

    def _check_noise(self, noise: Tensor, settings: Settings) -> None:
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


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
