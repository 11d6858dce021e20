"""Invert the decoder: the latents whose decoding is a given picture.

The encoder only approximates the decoder's inverse, and what it misses (tens of dB) is the largest
loss on the way from a saved picture back to its noise. Here the decoder itself is solved for its
input, from the encoder's answer: by L-BFGS (Liu and Nocedal 1989, doi:10.1007/BF01589116), or without
gradients (Hong et al. 2024, arXiv:2409.18442), which takes a forward pass of both parts a step, works
in half precision, and ends where the encoder no longer sees a difference.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import VAE, check_image, check_latents, compute_dtype


@dataclass(frozen=True)
class Refinement:
    """The best latents so far, and how well they decode to the picture."""

    number: int
    """Steps taken, 1 to `steps`."""

    latents: Tensor
    """(B, 16, h, w), the best of all steps, sample by sample."""

    psnr: Tensor
    """(B,) dB: 10 · log10(4 / MSE) of picture and clamped decoding; 4 is the square of the range [-1, 1]."""

    gain: Tensor
    """(B,) dB, `psnr` less that of the latents begun with. Never negative."""


def refine(vae: VAE, image: Tensor, latents: Tensor, *, steps: int = 50) -> Iterator[Refinement]:
    """Move latents until they decode to a picture.

    Minimises the mean square of decode(latents) - image over all pixels, except that a pixel which
    the picture clipped, at -1 or 1, is also matched by anything beyond. Samples do not influence
    each other. A step costs one forward and one backward pass of the decoder a sample, seldom more,
    and the memory of training it, whatever the caller's grad mode; the weights get no gradients.

    Args:
        vae: with weights in float32 or float64; in less, rounding hides what there is to gain.
        image: the picture, (B, 3, H, W) in [-1, 1]. Eight bits bound the result: use `image.read`
            on a 16-bit PNG where there is one.
        latents: where to begin, (B, 16, H/8, W/8): `vae.encode(image)`.
        steps: iterations of L-BFGS.

    Yields:
        A `Refinement` after each step.

    Raises:
        ValueError: shapes that do not fit, low-precision weights, no steps, or values that are not
            finite. The first three at the call, before any work.
    """
    _check(vae, image, latents, steps)
    dtype = compute_dtype(vae.decoder)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"refine needs an autoencoder in float32 or float64, got {dtype}: use vae.float()")

    def run() -> Iterator[Refinement]:  # apart, so that the checks above run at the call
        with torch.inference_mode(False):  # clones made outside of inference mode can have gradients
            pairs = zip(
                image.detach().to(dtype, copy=True), latents.detach().to(dtype, copy=True), strict=True
            )
            searches = [_Search(vae, target[None], start[None]) for target, start in pairs]
        for number in range(1, steps + 1):
            for search in searches:
                search.step()
            mse = torch.tensor(
                [(search.error, search.first_error) for search in searches], dtype=torch.float64
            )
            psnr, first = (10 * torch.log10(4 / mse)).unbind(1)
            yield Refinement(number, torch.cat([search.best for search in searches]), psnr, psnr - first)

    return run()


def refine_by_encoder(
    vae: VAE, image: Tensor, latents: Tensor, *, steps: int = 100, rate: float = 0.01
) -> Iterator[Refinement]:
    """Move latents until what they decode to is encoded like the picture, without gradients.

        z ← z - ρ · Adam(encode(decode(z)) - encode(picture))

    ρ rises over the first tenth of the steps and falls to 0 as a cosine. What the encoder cannot see stays as
    it was, so that `refine` comes nearer to the picture, at three times the cost of a step and more memory.
    Samples do not influence each other.

    Args:
        vae: in any dtype.
        image: the picture, (B, 3, H, W) in [-1, 1].
        latents: where to begin, (B, 16, H/8, W/8): `vae.encode(image)`.
        steps: how many.
        rate: ρ at its highest.

    Yields:
        A `Refinement` after each step; the best latents are those nearest to the picture.

    Raises:
        ValueError: shapes that do not fit or no steps, at the call; or values that are not finite.
    """
    _check(vae, image, latents, steps)

    def run() -> Iterator[Refinement]:
        with torch.no_grad():
            goal = vae.encode(image).float()
        z = best = latents.detach().float()
        mean, square = torch.zeros_like(z), torch.zeros_like(z)
        first = error = None
        for number in range(1, steps + 1):
            with torch.no_grad():
                decoded = vae.decode(z).float()
                push = vae.encode(decoded).float() - goal
            now = (decoded.clamp(-1, 1) - image).square().flatten(1).mean(1).double()
            if not now.isfinite().all():
                raise ValueError("the image or the decoding of these latents is not finite")
            first = now if first is None else first
            better = now <= (now if error is None else error)
            best = z.where(better[:, None, None, None], best)
            error = now if error is None else torch.minimum(now, error)
            psnr, begun = 10 * torch.log10(4 / error), 10 * torch.log10(4 / first)
            yield Refinement(number, best, psnr.cpu(), (psnr - begun).cpu())
            mean, square = 0.9 * mean + 0.1 * push, 0.999 * square + 0.001 * push.square()
            towards = (mean / (1 - 0.9**number)) / ((square / (1 - 0.999**number)).sqrt() + 1e-8)
            share = min(number / max(1, steps // 10), 0.5 + 0.5 * math.cos(math.pi * number / steps))
            z = z - rate * share * towards

    return run()


def _check(vae: VAE, image: Tensor, latents: Tensor, steps: int) -> None:
    """Raise ValueError unless latents and image are each other's, and there are steps."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    check_image(image, vae.config)
    check_latents(latents, vae.config)
    expected = (
        len(image),
        vae.config.latent_channels,
        *(size // vae.config.factor for size in image.shape[2:]),
    )
    if latents.shape != expected:
        raise ValueError(
            f"latents of an image {tuple(image.shape)} are {expected}, got {tuple(latents.shape)}"
        )


class _Search:
    """L-BFGS on the latents of one sample; remembers the best."""

    def __init__(self, vae: VAE, target: Tensor, start: Tensor) -> None:
        self.vae = vae
        self.target = target
        self.x = start.requires_grad_()
        self.best = start.detach().clone()
        self.error = self.first_error = float("inf")
        self._last: tuple[Tensor, Tensor] | None = None  # the point last evaluated, and its loss
        self._optimizer = torch.optim.LBFGS(
            [self.x],
            max_iter=1,
            max_eval=25,  # the limit of a line search; one or two is usual
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )

    def step(self) -> None:
        """One iteration: a direction and a line search along it."""
        with torch.inference_mode(False):
            self._optimizer.step(self._evaluate)

    def _evaluate(self) -> Tensor:
        """The loss at `x`, its gradient left in `x.grad`. Called by the optimiser, with gradients on."""
        if self._last is not None and torch.equal(self.x, self._last[0]):
            return self._last[1]  # an iteration begins where the last line search ended
        decoded = self.vae.decode(self.x)
        error = (decoded.detach().clamp(-1, 1) - self.target).square().mean().item()
        if error != error:
            raise ValueError("the image or the decoding of these latents is not finite")
        if self._last is None:
            self.first_error = error
        if error < self.error:
            self.error = error
            self.best = self.x.detach().clone()
        clipped = (self.target >= 1) & (decoded > 1) | (self.target <= -1) & (decoded < -1)
        loss = (
            (decoded - self.target).masked_fill(clipped, 0).square().sum()
        )  # not the mean: L-BFGS has 1e-10 in it
        (self.x.grad,) = torch.autograd.grad(loss, self.x)
        self._last = (self.x.detach().clone(), loss.detach())
        return self._last[1]
