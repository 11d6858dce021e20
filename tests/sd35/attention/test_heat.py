"""On the embedded model the heat of a shape's name lies on the shape. `pytest -s` prints what is reached."""

from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import sd35
from sd35.attention import AttentionMaps, attention_maps, heat_share
from sd35.tiny.scenes import COLOURS, KINDS

WEIGHTS = Path(sd35.__file__).resolve().parents[1] / "weights" / "tiny"
PROMPTS, STEPS = 4, 8
COLOUR_TOLERANCE = 60  # Euclidean, of 0 to 255; no two of the colours are nearer than 90


class Share(NamedTuple):
    """How much of a shape's heat falls on it, and how much of the picture it covers."""

    heat: float
    area: float
    by_block: list[float]


@pytest.fixture(scope="module")
def pipe() -> sd35.Pipeline:
    if not list(WEIGHTS.glob("*.safetensors")):
        pytest.skip("needs the weights of the embedded model in weights/tiny")
    return sd35.load("tiny")


def prompts() -> list[tuple[str, list[tuple[str, str]]]]:
    """Pictures of two shapes, and the kind and the colour of each."""
    generator = torch.Generator().manual_seed(0)
    kinds, colours = (list(permutations(names, 2)) for names in (KINDS, COLOURS))
    chosen = []
    for i in range(PROMPTS):
        pair = kinds[int(torch.randint(len(kinds), (), generator=generator))]
        paint = colours[int(torch.randint(len(colours), (), generator=generator))]
        relation = ("above", "below", "to the left of", "to the right of")[i % 4]
        first, second = (f"a {colour} {kind}" for kind, colour in zip(pair, paint, strict=True))
        text = f"{first} {relation} {second} on a {('white', 'black')[i % 2]} background".replace(
            "a orange", "an orange"
        )
        chosen.append((text, list(zip(pair, paint, strict=True))))
    return chosen


def region_of(image: Tensor, colour: str) -> Tensor:
    """Where a picture (3, H, W) in [-1, 1] has a colour, (H, W) of 0 and 1."""
    wanted = torch.tensor(COLOURS[colour], dtype=torch.float32)[:, None, None]
    return ((127.5 * (image + 1) - wanted).norm(dim=0) < COLOUR_TOLERANCE).float()


def shares_of(maps: AttentionMaps, image: Tensor, shapes: list[tuple[str, str]]) -> list[Share]:
    """The shapes of one picture that were drawn."""
    shares = []
    for kind, colour in shapes:
        region = region_of(image, colour)
        if not 0.005 < region.mean() < 0.5:  # the shape was not drawn, or in another colour
            continue
        by_block = [heat_share(maps.heatmap(kind, block=block), region) for block in maps.blocks]
        shares.append(Share(heat_share(maps.heatmap(kind), region), float(region.mean()), by_block))
    return shares


def test_heat_falls_on_the_shape(pipe):
    shares: list[Share] = []
    for text, shapes in prompts():
        with attention_maps(pipe.mmdit) as maps:
            result = pipe.generate(text, steps=STEPS)
        shares += shares_of(maps, result.image[0], shapes)

    heat, area = (sum(getattr(share, name) for share in shares) / len(shares) for name in ("heat", "area"))
    won = sum(share.heat > share.area for share in shares) / len(shares)
    by_block = torch.tensor([share.by_block for share in shares]).mean(dim=0)
    print(
        f"\n{len(shares)} shapes: {heat:.3f} of the heat on {area:.3f} of the area; more than even: {won:.2f}"
    )
    print("by block:", " ".join(f"{share:.3f}" for share in by_block))
    assert len(shares) > 0.95 * 2 * PROMPTS  # all were drawn in their colour
    assert heat > 4.3 * area  # 0.300 on 0.061 measured
    assert won > 0.95  # 1.00 measured
    assert by_block.max() > 7.0 * area  # 0.517 measured, in the last block
