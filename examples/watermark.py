"""Hide a mark in the noise that a picture is drawn from, and find it again in the saved picture.

    python examples/watermark.py --pictures 200

    tree rings          rings of chosen values in the noise's Fourier transform (Wen et al. 2023,
                        arXiv:2305.20030)
    Gaussian shading    the signs of the noise spell an encrypted message, many times over (Yang et al. 2024,
                        arXiv:2404.04956)

Every picture has a key of its own. It is saved with 8 bits and its latents beside it; both are read back
and inverted with the prompt that stands in the file, and without any, as one who meets the picture
elsewhere would. A mark counts as found where its key agrees with the noise better than 99 % of other keys
do, so that one in a hundred pictures that do not bear it is expected to pass; here those are the pictures
with the other mark.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

import flow
import sd35
from sd35.device import as_device, as_dtype
from sd35.noise import draw_noise, generators
from sd35.tiny.captions import held_out_prompts
from vae.image import read

FIRST_KEY = 1_000
"""Of the first picture; those that follow count on from it."""
OTHER_KEYS = range(10_000, 10_999)
FOUND = 0.01
"""The share of keys, its own included, that may agree as well as the key does."""

INVERSES: dict[str, tuple[bool, dict[str, Any]]] = {
    "naive": (True, {"method": "naive"}),
    "exact": (True, {"method": "exact", "accuracy": 0.1}),
    "naive, without the prompt": (False, {"method": "naive"}),
}
"""By the name in the table: whether the prompt is known, and what `flow.invert` is told."""


class Case(NamedTuple):
    """One line of the table."""

    mark: str
    source: str
    inverse: str


class Mark(Protocol):
    """A mark for noise (B, C, h, w) of one shape; the key decides which."""

    def hide(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """Noise that bears the mark, each of its own key: near to `noise`, and still normally distributed."""
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

    def hide(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """See `Mark`."""
        transform = torch.fft.fft2(noise)
        transform[:, : self.channels, self.mask] = self._values(keys).to(transform)
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

    def hide(self, noise: Tensor, keys: Sequence[int]) -> Tensor:
        """See `Mark`: values keep their sizes, and their signs are the ciphered message."""
        signs = [message[:, None] * stream for message, stream in map(self._secret, keys)]
        return noise.abs() * torch.stack(signs).reshape(noise.shape).to(noise)

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


def shares_as_good(mark: Mark, noise: Tensor, keys: Sequence[int]) -> Tensor:
    """For each noise, the share of keys that agree with it as well as its own does, that included: (B,)."""
    own, others = mark.agreement(noise, keys).diagonal(), mark.agreement(noise, OTHER_KEYS)
    return (1 + (others >= own).sum(0)) / (1 + len(OTHER_KEYS))


class Found:
    """The noise of saved pictures of one size, by what their files alone hold."""

    def __init__(self, pipe: sd35.Pipeline, settings: Sequence[sd35.Settings]) -> None:
        first, size = settings[0], len(settings)
        self.sigmas = first.sigmas
        self.with_prompt = pipe.velocity(
            [one.prompts[0] for one in settings], first.negative, first.guidance_scale, batch_size=size
        )
        self.without = pipe.velocity([""] * size, guidance_scale=1, batch_size=size)

    def by_inverse(self, latents: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The name of each inverse, and the noise that it finds for these latents."""
        for name, (knows_prompt, options) in INVERSES.items():
            velocity = self.with_prompt if knows_prompt else self.without
            yield name, flow.invert(velocity, latents, self.sigmas, **options)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Draw pictures with either mark, and print how many of them are told to bear it."""
    args = arguments().parse_args(argv)
    pipe = sd35.load(args.model, as_device(args.device), as_dtype(args.dtype))
    shape = pipe.latents_shape(None, None)
    marks: dict[str, Mark] = {"tree rings": TreeRings(shape), "Gaussian shading": GaussianShading(shape)}
    prompts = held_out_prompts(args.pictures, shapes=1, seed=0)
    # How often each mark was found, by whether it was there.
    found: dict[Case, dict[bool, list[bool]]] = defaultdict(lambda: {True: [], False: []})
    with TemporaryDirectory() as folder, tqdm(total=args.pictures * len(marks), unit="picture") as bar:
        for start in range(0, args.pictures, args.batch_size):
            chosen = range(start, min(start + args.batch_size, args.pictures))
            plain = draw_noise(generators(chosen), shape)
            keys = [FIRST_KEY + picture for picture in chosen]
            for hidden in marks:
                noise = marks[hidden].hide(plain, keys)
                result = pipe.generate(
                    prompts[chosen.start : chosen.stop],
                    noise=noise,
                    steps=args.steps,
                    batch_size=args.batch_size,
                )
                for source, inverse, back in read_back(pipe, result, Path(folder)):
                    for name, mark in marks.items():
                        shares = shares_as_good(mark, back, keys)
                        found[Case(name, source, inverse)][hidden == name] += (shares <= FOUND).tolist()
                bar.update(len(chosen))
    print(table(found))


def read_back(pipe: sd35.Pipeline, result: sd35.Result, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
    """Save pictures and latents, and give what was read, by which inverse, and the noise that it found."""
    pictures = result.save(folder / "picture.png", overwrite=True)
    (latents,) = result.state().save(folder / "latents.safetensors", overwrite=True)
    find = Found(pipe, [sd35.read_settings(path) for path in pictures])
    sources = {
        "latents": sd35.State.load(latents).latents,
        "picture": pipe.encode(torch.cat([read(path) for path in pictures])),
    }
    for source, data in sources.items():
        assert data is not None
        for inverse, back in find.by_inverse(data):
            yield source, inverse, back


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", help="to compute in (default float32)")
    parser.add_argument("--pictures", type=int, default=200, help="with each mark (default 200)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--batch-size", type=int, default=10)
    return parser


def table(found: Mapping[Case, Mapping[bool, Sequence[bool]]]) -> str:
    """The counts, in Markdown."""
    lines = ["| mark | found in | inverse | where it is | where it is not |", "|---|---|---|---|---|"]
    for case, counts in sorted(found.items()):
        there, absent = (f"{sum(counts[here])} of {len(counts[here])}" for here in (True, False))
        lines.append(f"| {' | '.join(case)} | {there} | {absent} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
