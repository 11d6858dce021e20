"""The parts of a model that draws pictures, each called by what it does, each checked for NaN."""

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flow import SOLVERS
from mmdit import MMDiT, Offloaded, is_compiled
from textenc import Encoding, TextEncoder
from textenc.prompt import PromptLike, as_prompts
from vae import VAE
from vae.tiling import Code, decode_tiled, encode_tiled
from weights.load import Loader

from .adapters.fp8 import is_fp8
from .adapters.lora import loras_on
from .device import full_float32
from .errors import SettingsError, check_finite
from .images import Picture, as_image
from .loras import agreed
from .memory import NOTHING, Plan
from .presets import UNKNOWN, Variant
from .settings import Missing, Settings
from .size import Size, check_size
from .velocity import GuidedVelocity
from .version import release


@dataclass
class Model:
    """Transformer, autoencoder and text encoders of one model; each may be replaced by one that fits."""

    mmdit: MMDiT
    vae: VAE
    text: TextEncoder | None
    """None where prompts come encoded."""
    model: str
    """The name of the source, for the settings of pictures."""
    size: Size
    """Width and height of a picture where none are asked for: what the model was trained at."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where parts came from, of those that are of another source than `model`."""
    weights: str = ""
    """A hash by which other weights are told; empty where the parts were not loaded from files."""
    variant: Variant = UNKNOWN
    """The model that the transformer is, whose own numbers stand where nothing is said."""
    plan: Plan = NOTHING
    """What is done to need less memory."""
    notes: tuple[str, ...] = ()
    """What a user should know of how it was loaded."""
    offloaded: Offloaded | None = None
    """The transformer's blocks, where they are kept on the CPU."""
    nets: Mapping[Hashable, nn.Module] = field(default_factory=dict)
    """The ControlNets of the last call, by their files, so that the next one does not read them again."""

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({self.model!r}, {dtype} on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the transformer is; the other parts are expected there too."""
        return self.mmdit.pos_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in. States, guidance and noise are float32 always."""
        return self.mmdit.dtype

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """What each part that is there computes in, by its name in `weights`."""
        known = {"mmdit": self.dtype, "vae": _dtype_of(self.vae)}
        for name in ("clip_l", "clip_g", "t5"):
            encoder = getattr(self.text, name, None)
            if isinstance(encoder, nn.Module):
                known[name] = _dtype_of(encoder)
            elif isinstance(encoder, Loader):
                known[name] = encoder.dtype
        return known

    def velocity(
        self,
        prompt: PromptLike | Sequence[PromptLike] | Encoding,
        negative: PromptLike | Encoding = "",
        guidance_scale: float = 4.5,
        *,
        sigmas: Tensor | None = None,
        policy: str = "reference",
        missing: Missing = "zeros",
        batch_size: int = 1,
        **guidance: Any,
    ) -> GuidedVelocity:
        """Join the transformer with a prompt, as the velocity that solvers and inverses of `flow` follow.

        Args:
            prompt: one for any number of samples, or one for each; or what `encode_prompt` gave, which takes
                no text encoders.
            negative: what to move away from; likewise.
            guidance_scale: 1 is no guidance, at half the cost.
            sigmas: the noise levels of the steps that will be taken, (steps + 1,); hooks are told the step.
            policy: as in `generate`.
            missing: as in `generate`.
            batch_size: as in `generate`.
            guidance: the others that `GuidedVelocity` takes: conditions, combine, adjust, interval, ... A
                model's own numbers, which `generate` takes where nothing is said, count for nothing here.
        """
        if isinstance(prompt, Encoding):
            cond = [prompt.select(index).to(self.device) for index in range(len(prompt))]
        else:
            cond = [self.encode_prompt(one, policy=policy, missing=missing) for one in as_prompts(prompt)]
        if not isinstance(negative, Encoding):
            negative = self.encode_prompt(negative, policy=policy, missing=missing)
        uncond = negative.to(self.device)
        return GuidedVelocity(
            self.mmdit, cond, uncond, guidance_scale, sigmas=sigmas, batch_size=batch_size, **guidance
        )

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
        (encoding,) = self._encode(prompt, False, policy=policy, missing=missing)
        return encoding

    def _encode(
        self, prompts: PromptLike | Sequence[PromptLike], alone: bool, **options: Any
    ) -> list[Encoding]:
        """Encode prompts, each alone or all in one batch, and check what came."""
        if self.text is None:
            raise SettingsError(
                "this pipeline has no text encoders: load it with them, or give pipe.velocity two Encodings, "
                "the prompt and the negative one, for flow.solve and pipe.decode; sd35.load shows how"
            )
        text = self.text
        if self.offloaded is not None:
            self.offloaded.leave()
        encodings = text.encode_each(prompts, **options) if alone else [text.encode(prompts, **options)]
        for one in encodings:
            for tensor in (one.context, one.pooled):
                check_finite(tensor, "text encoders", tensor.dtype)
        return [one.to(self.device) for one in encodings]

    def encode(self, picture: Picture) -> Tensor:
        """Latents of pictures: the mean, (B, 16, H/8, W/8), float32.

        Args:
            picture: (B, 3, H, W) in [-1, 1], or pictures in any form that `as_image` takes.

        Raises:
            ValueError: H or W is no multiple of 8, or it is no picture.
            NonFiniteError: the autoencoder gave NaN or infinity.
        """
        return self.encode_image(as_image(picture))

    @full_float32()
    def encode_image(self, image: Tensor) -> Tensor:
        """`encode` of an image (B, 3, H, W) that is known to be one."""
        encode = self._in_tiles(self.vae.encode, encode_tiled)
        latents = torch.cat([encode(one) for one in image.to(self.device).float().split(1)])
        return check_finite(latents, "autoencoder (encoding)", _dtype_of(self.vae))

    @full_float32()
    def decode(self, latents: Tensor) -> Tensor:
        """Image of latents (B, 16, h, w), one at a time: (B, 3, 8h, 8w), nominally in [-1, 1], float32.

        Raises:
            ValueError: the shape is another.
            NonFiniteError: the autoencoder gave NaN or infinity.
        """
        decode = self._in_tiles(self.vae.decode, decode_tiled)
        image = torch.cat([decode(one) for one in latents.to(self.device).float().split(1)])
        return check_finite(image, "autoencoder (decoding)", _dtype_of(self.vae))

    def _in_tiles(self, whole: Code, tiled: Callable[..., Tensor]) -> Code:
        """How the autoencoder codes: at once, or as the plan says."""
        tile = self.plan.tile
        return whole if tile is None else partial(tiled, self.vae, tile=tile, overlap=tile // 4)

    @contextmanager
    def at_least(self, dtype: torch.dtype | None) -> Iterator[torch.dtype | None]:
        """Compute in this dtype where the transformer and the autoencoder have a narrower one.

        The weights are widened for the length of the block, and are the very tensors of before after it.
        Float32 is that in convolutions too; see `full_float32`.

        Args:
            dtype: float32 in practice; None widens nothing.

        Yields:
            What the transformer's weights were, where they are widened; else None.
        """
        if self.offloaded is not None:
            self.offloaded.leave()
        before, narrow = self.dtype, dict[nn.Parameter | Tensor, Tensor]()
        for module in () if dtype is None else (self.mmdit, self.vae):
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.dtype in (torch.bfloat16, torch.float16):
                    narrow[tensor] = tensor.data
        try:
            for tensor, own in narrow.items():
                tensor.data = own.to(dtype)
            with full_float32():
                yield before if self.dtype != before else None
        finally:
            for tensor, own in narrow.items():
                tensor.data = own

    def latents_shape(self, width: int | None, height: int | None) -> tuple[int, int, int]:
        """The shape (16, h, w) of the latents of one picture; None is the model's own size."""
        factor = self.vae.config.factor
        width, height = width or self.size.width, height or self.size.height
        return self.mmdit.config.channels, height // factor, width // factor

    def complete(self, settings: Settings) -> Settings:
        """Fill in what the settings left to the model, and record what the pictures are made with.

        Raises:
            SettingsError: the size is larger than the model draws, or the settings name LoRAs that are
                not on it.
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
        made_with |= {"compiled": "by block"} if is_compiled(self.mmdit) else {}
        made_with |= {"products": "fp8"} if is_fp8(self.mmdit) else {}
        made_with |= {"tile": str(self.plan.tile)} if self.plan.tile else {}
        made_with |= {f"{part}_source": source for part, source in self.sources.items()}
        made_with |= {"weights": self.weights} if self.weights else {}
        loras = agreed(settings.loras, loras_on(self))
        return replace(
            settings, width=width, height=height, loras=loras, model=self.model, made_with=made_with
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

    def encode_each(self, settings: Settings) -> list[Encoding]:
        """Encode the prompt of each image, and then the negative one.

        Each is encoded by itself, since T5's padding and the rounding of matrix products would make it depend
        on its neighbours; an encoder that is loaded for it is loaded once for all.

        Raises:
            SettingsError: there are no text encoders.
            NonFiniteError: an encoder gave NaN or infinity.
        """
        prompts = [*settings.prompts, settings.negative]
        unique = list(dict.fromkeys(prompts))
        encoded = self._encode(unique, True, policy=settings.policy, missing=settings.missing)
        by_prompt = dict(zip(unique, encoded, strict=True))
        *cond, uncond = (by_prompt[one] for one in prompts)
        return [one for one in cond for _ in range(settings.images_per_prompt)] + [uncond]


def _dtype_of(module: nn.Module) -> torch.dtype:
    """What a module computes in: that of its first floats, passing over quantised weights."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    floats = (one.dtype for one in tensors if one.is_floating_point() and one.itemsize > 1)
    return next(floats, torch.float32)
