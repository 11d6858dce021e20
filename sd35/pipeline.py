"""From a prompt to a picture: the parts of Stable Diffusion 3.5, joined.

SD3 paper (Esser et al. 2024, arXiv:2403.03206), figure 2:

    prompt ─ text encoders ─▶ context, pooled ─┐
    seed ───────────────────▶ noise ─ transformer, at each step ─▶ latents ─ autoencoder ─▶ picture

Each method makes the request of a task and hands it on; the command line makes the same requests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from flow import Calibration, Companion
from mmdit import eager_forward, is_compiled
from textenc.prompt import PromptLike

from .adapters.lora import add_lora, remove_lora, set_lora
from .adapters.report import LoraReport
from .device import as_device
from .documented import takes
from .found import Place
from .methods import NOT_CALIBRATED, Calibrating, Editing, Inverting, Marking
from .model import Model
from .presets import WhoseNumbers
from .report.recording import Recorder, Recording
from .saved.result import Result
from .settings import NOT_TAKEN, Settings
from .tasks.calibrate import Calibrate, calibrate
from .tasks.edit import Edit, Edited, edit
from .tasks.generate import Generate, Generation, Noise, generate
from .tasks.invert import Invert, Inverted, invert
from .tasks.source import Data
from .tasks.watermark import Put, Sought, find, put


class Pipeline(Model):
    """A model that draws pictures, inverts them and edits them. `sd35.load` makes one."""

    @takes(Settings, but=("prompts",))
    def generate(
        self,
        prompt: PromptLike | Sequence[PromptLike],
        *,
        noise: Noise | None = None,
        preset: WhoseNumbers | None = None,
        progress: bool = False,
        **given: Any,
    ) -> Result:
        """Draw pictures.

        With a `batch_size` of 1, image k of a batch equals that image alone to the last bit.

        Args:
            prompt: one or several; a text each, or a `textenc.Prompt` with other texts for some encoders.
            noise: (B, 16, height / 8, width / 8) to start from, one for each image, in place of a seed; or a
                saved state that holds it, or the path of one.
            preset: whose numbers stand for what is not said, "reference" or "diffusers", where this is a
                released model or the embedded one; `sd35.presets` has them. Those of other models are the
                ones below.
            progress: show a bar on stderr.
            given: the settings below.

        Raises:
            ValueError: a setting that cannot be worked with, or that has no effect, before work starts.
            NonFiniteError: a stage computed NaN or infinity.
        """
        request = self._request(prompt, given, noise, preset)
        return generate(self, request, progress=progress)

    @takes(Settings, but=("prompts",))
    def record(
        self,
        prompt: PromptLike | Sequence[PromptLike],
        *,
        noise: Noise | None = None,
        preset: WhoseNumbers | None = None,
        progress: bool = False,
        **given: Any,
    ) -> Recording:
        """Draw pictures and note down every step: `generate`, with what happened beside its result.

            pipe.record("a red circle").save("circle.html")

        The pictures are those of `generate`, to the last bit. Every step is decoded, which takes the time of
        one picture each.

        Args:
            prompt: as in `generate`.
            noise: as in `generate`.
            preset: as in `generate`.
            progress: as in `generate`.
            given: as in `generate`.

        Raises:
            ValueError: as `generate`; or the attention maps of so many pictures take too much.
        """
        request = self._request(prompt, given, noise, preset)
        generation = Generation(self, request, bar="" if progress else None)
        return Recorder(self, generation).run()

    def _request(
        self, prompt: Any, given: Mapping[str, Any], noise: Noise | None, preset: str | None
    ) -> Generate:
        """What is drawn, by the model's own numbers where nothing is said."""
        return Generate.of(prompt, given, noise=noise, variant=self.variant, preset=preset)

    def run(self, settings: Settings, *, noise: Noise | None = None, progress: bool = False) -> Result:
        """Draw pictures by their settings, those of an earlier one for instance; see `generate`."""
        return generate(self, Generate.of(base=settings, noise=noise), progress=progress)

    def steps(self, settings: Settings, *, noise: Noise | None = None) -> Generation:
        """Prepare a generation that the caller steps through; see `Generation` and `generate`."""
        return Generation(self, Generate.of(base=settings, noise=noise))

    @takes(Inverting, Settings, but=("prompts", *NOT_TAKEN))
    def invert(
        self,
        data: Data,
        prompt: PromptLike | Sequence[PromptLike] | None = None,
        *,
        companion: Companion | None = None,
        noise: Noise | None = None,
        progress: bool = False,
        **given: Any,
    ) -> Inverted:
        """Find the noise that pictures were drawn from, and measure what is lost on the way.

        The settings must be the generation's: another prompt or guidance scale is another flow.

        Args:
            data: pictures (B, 3, H, W) in [-1, 1], one Pillow picture or a list, latents (B, 16, h, w), or a
                saved state (`Result.state`), or the path of a picture or a state. What carries its settings
                needs nothing else. Eight bits and the autoencoder lose more than a good method does: latents
                are better.
            prompt: of the generation: one for all pictures, or one for each.
            companion: what a reversible solver left, `Result.companion`; a state has its own. With it,
                "exact" undoes the generation, and the other methods have no use for it.
            noise: the true noise, where it is known, to compare with; a state may have its own.
            progress: show a bar on stderr.
            given: the settings below. Those of a generation change what they name in those that the data
                carry, which is told in the notes. A seed that is known gives the noise to compare with. To
                hooks, the steps have the numbers of those that are undone.

        Raises:
            ValueError: the data are none of this model's, settings that do not fit, or a companion of
                another generation; before work starts.
            NonFiniteError: a stage computed NaN or infinity.
        """
        request = Invert.of(data, prompt, given, companion=companion, noise=noise, variant=self.variant)
        return invert(self, request, progress=progress)

    @takes(Editing, Settings, but=("prompts", *NOT_TAKEN))
    def edit(
        self,
        data: Data,
        prompt: PromptLike | Sequence[PromptLike],
        source_prompt: PromptLike | Sequence[PromptLike] | None = None,
        *,
        companion: Companion | None = None,
        progress: bool = False,
        **given: Any,
    ) -> Edited:
        """Draw pictures again under another prompt, keeping the rest.

        Seed, guidance and negative prompt given here are those of the new picture; of the old one only where
        it carries no settings of its own. The other settings are those of both.

        Args:
            data: as in `invert`.
            prompt: what is wanted: one for all pictures, or one for each.
            source_prompt: what is there, likewise, where the data do not carry it.
            companion: of a reversible solver, for the method inversion at strength 1; a state has its own.
            progress: show a bar on stderr.
            given: the settings below.

        Raises:
            ValueError: the data are none of this model's, or settings that do not fit.
            NonFiniteError: a stage computed NaN or infinity.
        """
        request = Edit.of(data, prompt, source_prompt, given, companion=companion, variant=self.variant)
        return edit(self, request, progress=progress)

    def add_lora(
        self, source: Place, scale: float = 1.0, name: str | None = None, merge: bool = False
    ) -> LoraReport:
        """Put a LoRA, or one of its relatives, on this pipeline; see `sd35.add_lora`.

        Pictures that are drawn from now on carry its name, its file's hash and its scale.
        """
        report = add_lora(self, source, scale, name, merge)
        self._compile_anew()
        return report

    def set_lora(self, name: str, scale: float) -> None:
        """Change the strength of a LoRA; see `sd35.set_lora`."""
        set_lora(self, name, scale)

    def remove_lora(self, name: str) -> None:
        """Take a LoRA off, and give the weights back to the last bit; see `sd35.remove_lora`."""
        remove_lora(self, name)
        self._compile_anew()

    def _compile_anew(self) -> None:
        """Forget what was compiled with other layers, of which torch keeps a few alone."""
        if is_compiled(self.mmdit):
            torch.compiler.reset()

    @takes(Calibrating, Settings, but=("prompts", *NOT_CALIBRATED))
    def calibrate(
        self, prompt: PromptLike | Sequence[PromptLike], *, progress: bool = False, **given: Any
    ) -> Calibration:
        """Find the noise levels on which a solver keeps nearest to this model's flow.

            table = pipe.calibrate(["a red circle", "a blue square"], steps=8)
            pipe.generate("a green ring", schedule=table.sigmas, solver=table.solver)

            table = pipe.calibrate("a red circle", steps=7, calibration="search", solver="fireflow")
            pipe.generate("a green ring", schedule=table.sigmas, solver=table.solver)

        Args:
            prompt: of the kind that will be drawn: 4 to 16 are enough.
            progress: show a bar on stderr.
            given: the settings below: those of the generations that the table is for. It is made for their
                guidance and their number of steps. What is not said are the model's own numbers, without
                skip-layer guidance.

        Raises:
            ValueError: a setting that cannot be worked with, before work starts.
        """
        request = Calibrate.of(prompt, given, variant=self.variant)
        return calibrate(self, request, progress=progress)

    @takes(Marking, Settings, but=("prompts",))
    def watermark(
        self, prompt: PromptLike | Sequence[PromptLike], *, progress: bool = False, **given: Any
    ) -> Result:
        """Draw pictures whose noise bears the mark of a secret key, as `generate` does otherwise.

            pipe.watermark("a red circle", key=42).save("marked.png")
            pipe.find_watermark("marked.png", key=42).found

        Args:
            prompt: as in `generate`. Picture k of several has the key + k.
            progress: show a bar on stderr.
            given: the settings below.

        Raises:
            ValueError: a setting that cannot be worked with, before work starts.
        """
        request = Put.of(prompt, given, variant=self.variant)
        return put(self, request, progress=progress)

    @takes(Marking)
    def find_watermark(self, data: Data, *, progress: bool = False, **given: Any) -> Sought:
        """Look for the mark of a key in pictures, which need not tell how they were drawn.

        Args:
            data: as in `invert`. Picture k of several is asked for the key + k.
            progress: show a bar on stderr.
            given: the settings below; and `steps`, `schedule` of a generation, to invert with.

        Raises:
            ValueError: a key out of range, or pictures that are none of this model's.
        """
        return find(self, data, given, progress=progress)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Pipeline":
        """Move all parts to a device, and compute in another dtype; None keeps what there is.

        Encoders that are loaded one by one are loaded there from now on; the transformer's blocks are there
        from now on too, where they were kept on the CPU.

        Returns:
            This pipeline.

        Raises:
            SettingsError: there is no such device.
        """
        where = None if device is None else as_device(device)
        if self.offloaded is not None:
            self.offloaded.undo()
            self.offloaded = None
            where = where or self.device
        if where is not None and where.type != "cuda":
            eager_forward(self.mmdit)
        for part in (self.mmdit, self.vae):
            part.to(device=where, dtype=dtype)
        loaders = {}
        for name in ("clip_l", "clip_g", "t5"):
            encoder = getattr(self.text, name, None)
            if isinstance(encoder, nn.Module):
                encoder.to(device=where, dtype=dtype)
            elif encoder is not None:
                loaders[name] = replace(encoder, device=where or encoder.device, dtype=dtype or encoder.dtype)
        if self.text is not None:
            self.text = replace(self.text, **loaders)
        self.nets = {}
        return self
