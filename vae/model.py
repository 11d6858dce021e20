"""The 16-channel autoencoder of SD3 and SD3.5: images to latents and back.

SD3 paper (Esser et al. 2024, arXiv:2403.03206), section 5.2.1; the architecture is that of latent
diffusion (arXiv:2112.10752), with 16 latent channels and no convolution around the bottleneck.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import DownLevel, GroupNorm, Middle, UpLevel, fast_order
from .config import VAEConfig

SHIFT = 0.0609
"""Mean of the encoder's output over the training images: latents = (z - SHIFT) · SCALE."""

SCALE = 1.5305
"""One over the standard deviation of the encoder's output over the training images."""

LOGVAR_RANGE = (-30.0, 20.0)
"""The predicted log-variance is held in this range, so that its exponential stays finite."""


class Encoder(nn.Module):
    """From an image to the mean and log-variance of its latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.channels
        inputs = (widths[0], *widths[:-1])
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(inputs[i], widths[i], config.num_res_blocks, last=i == len(widths) - 1)
            for i in range(len(widths))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 2·16, H/8, W/8)."""
        x = fast_order(self.conv_in(image))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """From unscaled latents to an image: the encoder mirrored, with one more block in each level."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.channels
        inputs = (
            *widths[1:],
            widths[-1],
        )  # level i takes what level i + 1 gives; the last takes the middle's
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        # Numbered by resolution as in the encoder, up.0 being the image's, so they run last to first.
        self.up = nn.ModuleList(
            UpLevel(inputs[i], widths[i], config.num_res_blocks + 1, last=i == 0) for i in range(len(widths))
        )
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, 16, h, w) to (B, 3, 8h, 8w)."""
        x = self.mid(fast_order(self.conv_in(z)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    """The autoencoder, with attribute paths that are the official keys without `first_stage_model.`.

    Every method takes tensors of any floating dtype, computes in the dtype of the weights and
    answers in the dtype that came in. Gradients follow the caller's grad mode.

    Low precision, against float32 and relative to the largest value: bfloat16 stays within 5 %
    and float16 within 0.5 % (the largest error of random weights; the tests hold it). float16
    overflows above 65504, which then shows as NaN; `image.to_pil` refuses to make a picture of that.

    Memory grows with the area: beside its weights, a float32 decode of the official size was measured
    to take 0.19 GB at 256 x 256, which is 3 GB at 1024 x 1024. `tiling` has tiles for less memory, which
    decode to a slightly other picture: every normalisation and the attention of the middle see the whole map.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, before shift and scale.

        Args:
            image: (B, 3, H, W) in [-1, 1], H and W multiples of 8. The range is not checked,
                because the official canny control image leaves it on purpose.

        Returns:
            Mean and log-variance, each (B, 16, H/8, W/8); the latter clamped to [-30, 20].

        Raises:
            ValueError: the shape or dtype is another.
        """
        check_image(image, self.config)
        moments = self.encoder(image.to(compute_dtype(self.encoder)))
        mean, logvar = moments.to(image.dtype).contiguous().chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def encode(
        self, image: Tensor, *, sample: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Latents of an image: (mean - SHIFT) · SCALE, or a draw from the posterior in the mean's place.

        Args:
            image: (B, 3, H, W) in [-1, 1], H and W multiples of 8.
            sample: draw instead of taking the mean.
            generator: where the draw comes from; needed with `sample`. The noise is drawn on the
                generator's device in float32, so a CPU generator gives the same on every device.

        Returns:
            (B, 16, H/8, W/8).

        Raises:
            ValueError: the shape or dtype is another, or `sample` without a generator.
        """
        if sample and generator is None:
            raise ValueError("sample=True draws noise: pass generator=torch.Generator().manual_seed(seed)")
        mean, logvar = self.moments(image)
        if generator is not None and sample:
            noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=torch.float32)
            mean = posterior_sample(mean, logvar, noise.to(mean))
        return (mean - SHIFT) * SCALE

    def decode(self, latents: Tensor) -> Tensor:
        """Image of latents, the decoder of latents / SCALE + SHIFT.

        Args:
            latents: (B, 16, h, w), as `encode` gives them and the MM-DiT sees them.

        Returns:
            (B, 3, 8h, 8w), nominally in [-1, 1]; not clamped.

        Raises:
            ValueError: the shape or dtype is another.
        """
        check_latents(latents, self.config)
        z = latents / SCALE + SHIFT
        return self.decoder(z.to(compute_dtype(self.decoder))).to(latents.dtype).contiguous()


def compute_dtype(half: nn.Module) -> torch.dtype:
    """The dtype that the encoder or the decoder computes in: that of its first weights of 16 bits or more."""
    return next(weight.dtype for weight in half.parameters() if weight.itemsize > 1)


def posterior_sample(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Turn standard normal `noise` into a draw from the posterior: mean + exp(logvar / 2) · noise."""
    return mean + torch.exp(0.5 * logvar) * noise


def check_image(image: Tensor, config: VAEConfig) -> None:
    """Raise ValueError unless `image` is (B, 3, H, W) floats of a size the encoder can halve."""
    _check(image, "an image", 3)
    height, width = image.shape[2:]
    factor = config.factor
    if height % factor or width % factor:
        nearest = " x ".join(str(max(round(size / factor), 1) * factor) for size in (height, width))
        raise ValueError(
            f"an image's height and width must be multiples of {factor}, got {height} x {width}; "
            f"the nearest are {nearest}"
        )


def check_latents(latents: Tensor, config: VAEConfig) -> None:
    """Raise ValueError unless `latents` are (B, 16, h, w) floats."""
    _check(latents, "latents", config.latent_channels)


def _check(tensor: Tensor, what: str, channels: int) -> None:
    """Refuse what the convolutions would take wrongly, or refuse with a puzzle."""
    if tensor.ndim != 4 or tensor.shape[1] != channels or not tensor.numel():
        raise ValueError(f"{what} must be (B, {channels}, H, W) and not empty, got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{what} must be floats, got {tensor.dtype}; image.to_tensor converts pictures")
