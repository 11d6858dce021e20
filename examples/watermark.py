"""Hide a mark in the noise that a picture is drawn from, and find it again in the saved picture.

    python examples/watermark.py --pictures 200

    tree rings          rings of chosen values in the noise's Fourier transform (Wen et al. 2023,
                        arXiv:2305.20030)
    Gaussian shading    the signs of the noise spell an encrypted message, many times over (Yang et al. 2024,
                        arXiv:2404.04956)

Every picture is saved with 8 bits, read back, encoded and inverted, with the prompt that stands in its
file. A mark counts as found where the key agrees with the noise better than 99 % of other keys do, so that
one in a hundred pictures without a mark is expected to pass.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch
from torch import Tensor

import flow
import sd35
from sd35.device import as_device, as_dtype
from sd35.noise import draw_noise, generators
from sd35.train.captions import held_out_prompts
from vae.image import read

KEY = 2026
OTHER_KEYS = range(10_000, 10_999)
FOUND = 0.01
"""The share of keys, its own included, that may agree as well as the key does."""

INVERSES = {"naive": {"method": "naive"}, "exact": {"method": "exact", "accuracy": 1e-2}}


class Mark(Protocol):
    """A mark for noise (B, C, h, w) of one shape; the key decides which."""

    def hide(self, noise: Tensor, key: int) -> Tensor:
        """Noise that bears the mark, as near to `noise` as it can be, still normally distributed."""
        ...

    def agreement(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """How well each key agrees with each noise, (keys, B); more is better."""
        ...


class TreeRings:
    """Rings around the lowest frequency, each of one real value, in the first channels."""

    def __init__(self, shape: Sequence[int], *, channels: int = 4) -> None:
        height, width = shape[-2:]
        self.channels = channels
        y, x = (torch.fft.fftfreq(side) * side for side in (height, width))
        distance = torch.hypot(y[:, None], x).round().long()  # (h, w), whole rings
        self.radius = max(min(height, width) // 3, 1)
        self.mask = distance <= self.radius
        self.ring = distance[self.mask]  # of each coefficient within
        self.scale = (height * width) ** 0.5  # the deviation of a coefficient of white noise

    def hide(self, noise: Tensor, key: int) -> Tensor:
        """See `Mark`."""
        transform = torch.fft.fft2(noise)
        transform[:, : self.channels, self.mask] = self._values([key])[0].to(transform)
        return torch.fft.ifft2(transform).real

    def agreement(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """See `Mark`: the projection on the key's values, which no size of theirs favours."""
        found = torch.fft.fft2(noise)[:, : self.channels, self.mask].real.flatten(1)  # (B, coefficients)
        values = self._values(keys).to(found).flatten(1)
        return values @ found.T / values.norm(dim=1, keepdim=True)

    def _values(self, keys: Sequence[int]) -> Tensor:
        """The value of every coefficient, (keys, channels, coefficients); real, so that noise stays real."""
        rings = draw_noise(generators(keys), (self.channels, self.radius + 1))
        return self.scale * rings[..., self.ring]


class GaussianShading:
    """A message, every bit of it many times, ciphered by a stream of signs: both drawn from the key."""

    def __init__(self, shape: Sequence[int], *, bits: int = 64) -> None:
        self.shape, self.bits = tuple(shape), bits

    def hide(self, noise: Tensor, key: int) -> Tensor:
        """See `Mark`: values keep their sizes, and their signs are the ciphered message."""
        message, stream = self._secret(key)
        signs = (message[:, None] * stream).reshape(self.shape)
        return noise.abs() * signs.to(noise)

    def agreement(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """See `Mark`: the share of the message's bits that are read right, each by the vote of its copies."""
        signs = noise.sign().reshape(len(noise), self.bits, -1)  # (B, bits, copies)
        shares = []
        for key in keys:
            message, stream = (one.to(noise) for one in self._secret(key))
            votes = (signs * stream).sum(2)
            shares.append((votes * message > 0).float().mean(1))
        return torch.stack(shares)

    def _secret(self, key: int) -> tuple[Tensor, Tensor]:
        """Message (bits,) and stream (bits, copies), of 1 and -1."""
        copies = torch.Size(self.shape).numel() // self.bits
        drawn = draw_noise(generators([key]), (self.bits, 1 + copies))[0].sign()
        return drawn[:, 0], drawn[:, 1:]


def shares_as_good(mark: Mark, noise: Tensor, key: int) -> Tensor:
    """For each noise, the share of keys that agree with it as well as `key` does, itself included: (B,)."""
    own, others = mark.agreement(noise, [key]), mark.agreement(noise, OTHER_KEYS)
    return (1 + (others >= own).sum(0)) / (1 + len(OTHER_KEYS))


def found_noise(pipe: sd35.Pipeline, paths: Sequence[Path], inverse: dict, batch_size: int) -> Tensor:
    """The noise of saved pictures of one size, by what their files alone hold."""
    settings = [sd35.read_settings(path) for path in paths]
    latents = pipe.encode(torch.cat([read(path) for path in paths]))
    first = settings[0]
    prompts = [one.prompts[0] for one in settings]
    velocity = pipe.velocity(prompts, first.negative, first.guidance_scale, batch_size=batch_size)
    return flow.invert(velocity, latents, flow.sigmas(first.steps), **inverse)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw pictures with either mark and with none, and print how many of them are told to bear it."""
    args = arguments().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), as_dtype(args.dtype))
    shape = pipe.latents_shape(None, None)
    marks: dict[str, Mark] = {"tree rings": TreeRings(shape), "Gaussian shading": GaussianShading(shape)}
    prompts = held_out_prompts(args.pictures, shapes=1, seed=0)
    found: dict[tuple[str, str, bool], list[bool]] = defaultdict(
        list
    )  # by mark, inverse, whether it is there
    with TemporaryDirectory() as folder:
        for start in range(0, args.pictures, args.batch_size):
            chosen = range(start, min(start + args.batch_size, args.pictures))
            plain = draw_noise(generators(chosen), shape)
            noises = {name: mark.hide(plain, KEY) for name, mark in marks.items()} | {"none": plain}
            for hidden, noise in noises.items():
                result = pipe.generate(
                    prompts[chosen.start : chosen.stop],
                    noise=noise,
                    steps=args.steps,
                    batch_size=args.batch_size,
                )
                paths = result.save(Path(folder) / "picture.png", overwrite=True)
                for inverse, options in INVERSES.items():
                    back = found_noise(pipe, paths, options, args.batch_size)
                    for name in marks if hidden == "none" else [hidden]:
                        shares = shares_as_good(marks[name], back, KEY)
                        found[name, inverse, hidden == name] += (shares <= FOUND).tolist()
    print(table(found))


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", help="to compute in (default float32)")
    parser.add_argument("--pictures", type=int, default=200, help="with each mark, and without (default 200)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--batch-size", type=int, default=20)
    return parser


def table(found: dict[tuple[str, str, bool], list[bool]]) -> str:
    """The counts, in Markdown."""
    lines = ["| mark | inverse | found where it is | found where it is not |", "|---|---|---|---|"]
    for mark, inverse in dict.fromkeys((mark, inverse) for mark, inverse, _ in found):
        there, absent = found[mark, inverse, True], found[mark, inverse, False]
        lines.append(
            f"| {mark} | {inverse} | {sum(there)} of {len(there)} | {sum(absent)} of {len(absent)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
