"""Of every two settings that are given, each changes what comes out, or the request is refused."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flow import SkipLayer
from sd35 import Guidance, Pipeline, load
from sd35.fields import table
from sd35.inputs import PictureSettings
from sd35.methods import Editing
from sd35.settings import NOT_TAKEN, Settings
from textenc import TextEncoder

DRAWN: dict[str, Any] = {
    "negative": "blue",
    "seed": 7,
    "steps": 3,
    "guidance_scale": 1,
    "width": 48,
    "height": 16,
    "images_per_prompt": 2,
    "solver": "leapfrog",
    "solver_options": {"damping": 0.7},
    "schedule": "tailed",
    "schedule_shift": 1.5,
    "least_ratio": 0.25,
    "cache": (0,),
    "cache_threshold": 0.1,
    "policy": "diffusers",
    "missing": "drop",
    "rule": "apg",
    "apg_parallel": 0.5,
    "apg_norm": 0.5,
    "interval": (0.1, 0.9),
    "zero_steps": 1,
    "skip_layer": SkipLayer(2.8, 0.01, 0.9, (1,)),
    "skipped": (0,),
    "rescale": 0.5,
    "threshold": (0.9, 2.8),  # so mild that an inverse still converges
}
EDITED: dict[str, Any] = {
    "method": "flow_edit",
    "strength": 0.5,
    "source_prompt": "a star",
    "source_guidance_scale": 1.5,
    "accuracy": 0.01,
    "average": 2,
    "gamma": 0.25,
    "eta": 0.25,
    "eta_interval": (0.5, 0.8),
}
UNSEEN = {"batch_size", "precision", "prompts", "guidance", "loras", "model", "made_with"}
"""What decides how fast it goes and what it is computed in, what is no single setting, and LoRAs, which must
be on the pipeline: tests/sd35/cli/test_lora.py draws with them."""


class Block(nn.Module):
    """In the place of a block of the transformer: what depends on all that it does, in few operations."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor, context: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Image tokens (B, N, D), context (B, M, D), c (B, D)."""
        return torch.addcmul(
            x, torch.sin(x + c[:, None] + self.number), context.mean(1, keepdim=True)
        ), context


@pytest.fixture(scope="module")
def pipe(model_folder) -> Iterator[Pipeline]:
    """Without T5, so that what stands for a missing encoder matters.

    What settings do is looked at, not what blocks do, nor the picture of the latents; a text is read once.
    """
    pipe = load(model_folder, t5=False)
    pipe.mmdit.joint_blocks = nn.ModuleList(map(Block, range(2)))
    pipe.decode = lambda latents: latents
    encode, found = TextEncoder.encode_each, {}

    def remembered(text, prompts, **options):
        key = *prompts, *options.items()
        if key not in found:
            found[key] = encode(text, prompts, **options)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "encode_each", remembered)
        yield pipe


def arguments(given: dict[str, Any]) -> dict[str, Any]:
    inner = table(Guidance)
    guidance = {name: value for name, value in given.items() if name in inner}
    return {name: value for name, value in given.items() if name not in inner} | (
        {"guidance": Guidance(**guidance)} if guidance else {}
    )


def outcome(run) -> bytes | None:
    """What comes out, to the last bit; None where it is refused."""
    try:
        return run().numpy().tobytes()
    except ValueError:
        return None


def check_pairs(names, other_names, run) -> list[tuple[str, str]]:
    """The pairs that are let through though one of the two has no effect beside the other."""
    alone = {name: outcome(lambda name=name: run(name)) for name in {*names, *other_names}}
    idle = []
    for first, second in combinations(dict.fromkeys([*names, *other_names]), 2):
        if first not in names:
            continue
        both = outcome(lambda first=first, second=second: run(first, second))
        if both is not None and both in (alone[first], alone[second]):
            idle.append((first, second))
    return idle


def test_every_setting_is_tried() -> None:
    told = {*table(Settings), *table(Guidance), *table(Editing)}
    assert told - UNSEEN == {*DRAWN, *EDITED} | {
        *table(PictureSettings)
    }  # pictures/test_effect.py tries these


def test_settings_of_a_generation(pipe) -> None:
    def run(*names: str) -> torch.Tensor:
        given = arguments({name: DRAWN[name] for name in names})
        return pipe.generate("a red circle!", **({"steps": 4} | given)).latents

    assert check_pairs(DRAWN, DRAWN, run) == []


@pytest.mark.parametrize("method", ["inversion", "flow_edit", "rf_inversion"])
def test_settings_of_an_edit(pipe, method) -> None:
    drawn = pipe.generate("a red circle", seed=1, steps=4)

    def run(*names: str) -> torch.Tensor:
        given = arguments({name: (EDITED | DRAWN)[name] for name in names})
        known = {} if method == "rf_inversion" else {"source_prompt": "a circle"}
        base = {"method": method, "steps": 4} | ({"accuracy": 0.3} if method == "inversion" else {})
        return pipe.edit(drawn.latents, "a blue square!", **(known | base | given)).latents

    of_edit = [name for name in EDITED if name != "method"]
    assert check_pairs(of_edit, [name for name in DRAWN if name not in NOT_TAKEN], run) == []
