"""How well the embedded model draws: prompts it never saw, read back by two judges.

    python benchmarks/tiny.py                                     # 300 prompts of a kind; minutes
    python benchmarks/tiny.py --sheet sheet.png --hundred 100.png # and sheets of pictures

Prints Markdown. The prompts of one and of two shapes name combinations of attributes that training held
out; the open ones say little. A picture is right when a judge finds just the shapes of the prompt and of
each all that is said of it: that of the tests, which follows outlines and whose verdict is meant where no
judge is named, and that of second_judge.py. Neither shares code with the other or with what drew the
training pictures, and training knows neither.
"""

import argparse
import multiprocessing
import os
import sys
import textwrap
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that nothing needs to be installed

from first_judge import load_judge  # noqa: E402
from second_judge import faults  # noqa: E402

import flow  # noqa: E402
import sd35  # noqa: E402
from sd35.device import as_device  # noqa: E402
from sd35.noise import draw_noise, generators, seeded  # noqa: E402
from sd35.presets import numbers_of  # noqa: E402
from sd35.tiny.autoencoder import NOISE, psnr, read_back  # noqa: E402
from sd35.tiny.captions import Claim, ShapeClaim, held_out_prompts, open_prompts, parse  # noqa: E402
from sd35.tiny.painting import draw  # noqa: E402
from sd35.tiny.scenes import Scene, training_scene  # noqa: E402
from sd35.tiny.transformer import JITTER  # noqa: E402
from vae.image import to_uint8  # noqa: E402

SHEET = (
    "a small red circle on the left on a white background",
    "a blue star above a yellow square on a black background",
    "a large green ring in the centre on a grey background",
    "an orange triangle to the right of a purple cross on a white background",
    "a medium pink square at the bottom on a blue background",
    "a cyan circle below a red star on a black background",
    "a large yellow star at the top on a purple background",
    "a purple ring to the left of a green triangle on a grey background",
    "a red cross above a blue circle on a yellow background",
    "a green triangle on the right on a white background",
    "a star",
    "two circles",
    "a red square",
    "a ring",
    "blue triangle",
    "two green stars",
    "a cross and a circle",
    "a picture of a yellow ring",
    "a circle",
    "a small purple star",
)
"""Ten prompts that say it all, and ten that leave much open."""

FAULTS = {
    "wrong or unclear background": "background is",
    "wrong number of shapes": " shapes (",
    "wrong or unclear kind": ": kind is",
    "wrong or unclear colour": ": colour is",
    "wrong size": ": size is",
    "wrong place": ": place is",
    "wrong relation": "the other, not",
}
"""What may be wrong with a picture, and what marks it in the judge's words."""


class Verdicts(NamedTuple):
    """What each judge holds against a picture; an empty list where it is right."""

    first: list[str]
    second: list[str]


def verdicts(picture: np.ndarray, claim: Claim) -> Verdicts:
    """What both judges say of a picture."""
    judge = load_judge()
    return Verdicts(judge.disagreements(judge.read(picture), claim), faults(picture, claim))


def claim_of(scene: Scene) -> Claim:
    """All that is true of a scene."""
    shapes = tuple(ShapeClaim(one.kind, one.colour, one.size, one.place) for one in scene.shapes)
    return Claim(shapes, scene.background, scene.relation)


def print_autoencoder(pipe: sd35.Pipeline, judges: Executor, count: int) -> None:
    """What comes back of `count` pictures, and of latents."""
    generator = seeded(1, 9)
    scenes = [training_scene(generator) for _ in range(count)]
    image = draw(scenes, generator, jitter=JITTER).to(pipe.device)
    claims = [claim_of(scene) for scene in scenes]
    decoded = torch.cat([pipe.vae.decode(pipe.vae.encode(part)) for part in image.split(16)])
    decibels = psnr(pipe.vae, image)
    row("autoencoder: PSNR, mean", f"{decibels.mean():.2f} dB")
    row("autoencoder: PSNR, worst", f"{decibels.min():.2f} dB")
    for name, what in (("as painted", image), ("encoded and decoded", decoded)):
        print_right(f"pictures {name}: read right", judged(judges, to_uint8(what), claims))
    back = read_back(pipe.vae, image[:64], generator)
    row("latents read back from 8 bits: error, of their deviation", f"{back:.4f} (noise {NOISE})")


def judged(judges: Executor, pictures: torch.Tensor, claims: Sequence[Claim]) -> list[Verdicts]:
    """The verdicts on pictures (B, 3, H, W) of 8 bits."""
    arrays = list(pictures.movedim(1, 3).cpu().numpy())
    return list(judges.map(verdicts, arrays, claims, chunksize=8))


def print_right(name: str, found: Sequence[Verdicts]) -> None:
    """A row for each judge: how many it finds right."""
    row(name, share(sum(not one.first for one in found), len(found)))
    row(f"{name}, says the second judge", share(sum(not one.second for one in found), len(found)))


def guided_velocity(pipe: sd35.Pipeline, prompts: Sequence[str], scale: float, arguments: Any) -> Any:
    """The velocity of prompts, guided as the model's own numbers say, or at the levels that are given."""
    interval = arguments.guidance_interval
    if interval is None:
        interval = numbers_of(pipe.variant.name, None).get("guidance", {}).get("interval", (0.0, 1.0))
    return pipe.velocity(
        list(prompts), guidance_scale=scale, batch_size=len(prompts), interval=tuple(interval)
    )


def drawn(pipe: sd35.Pipeline, prompts: Sequence[str], scale: float, arguments: Any) -> torch.Tensor:
    """Pictures of prompts, (B, 3, H, W) of 8 bits, with the seeds that `generate` would take."""
    velocity = guided_velocity(pipe, prompts, scale, arguments)
    seeds = range(arguments.seed, arguments.seed + len(prompts))
    noise = draw_noise(generators(seeds), pipe.latents_shape(None, None)).to(pipe.device)
    latents = flow.solve(velocity, noise, flow.sigmas(arguments.steps))
    return torch.cat([to_uint8(pipe.vae.decode(part)) for part in latents.split(16)]).cpu()


def print_prompts(
    pipe: sd35.Pipeline, judges: Executor, name: str, prompts: list[str], scale: float, arguments: Any
) -> tuple[torch.Tensor, list[Verdicts]]:
    """Draw prompts and print how many are right, and what is wrong with the others."""
    parts = [prompts[start : start + arguments.batch] for start in range(0, len(prompts), arguments.batch)]
    pictures = torch.cat([drawn(pipe, part, scale, arguments) for part in parts])
    found = judged(judges, pictures, [parse(prompt) for prompt in prompts])
    print_right(f"{name}, guidance {scale}: right", found)
    for fault, mark in FAULTS.items():
        if faulty := sum(any(mark in complaint for complaint in one.first) for one in found):
            row(f"{name}, guidance {scale}: {fault}", share(faulty, len(prompts)))
    return pictures, found


def print_noise(pipe: sd35.Pipeline, prompts: list[str], scale: float, arguments: Any) -> None:
    """How much of its noise a picture keeps: the naive inverse's cosine, from latents and from 8 bits."""
    velocity = guided_velocity(pipe, prompts, scale, arguments)
    noise = draw_noise(generators(range(len(prompts))), pipe.latents_shape(None, None)).to(pipe.device)
    sigmas = flow.sigmas(arguments.steps)
    latents = flow.solve(velocity, noise, sigmas)
    eight = to_uint8(pipe.vae.decode(latents)).float() / 127.5 - 1
    for name, data in (("its latents", latents), ("a PNG", pipe.vae.encode(eight))):
        found = flow.invert(velocity, data, sigmas, "naive")
        cosine = flow.closeness(found, noise).total_cosine
        row(f"noise found by naive inversion from {name}, guidance {scale}: cosine", f"{cosine:.3f}")


def draw_sheet(pipe: sd35.Pipeline, path: Path, arguments: Any) -> None:
    """Draw the prompts of SHEET with their texts and seeds under them, five in a row."""
    pictures = drawn(pipe, SHEET, arguments.guidance_scale[0], arguments).movedim(1, 3).numpy()
    side, gap, line, columns = 160, 16, 15, 5
    told = [f"{prompt} (seed\u00a0{arguments.seed + index})" for index, prompt in enumerate(SHEET)]
    texts = [textwrap.wrap(text, 27) for text in told]
    rows = [range(start, min(start + columns, len(SHEET))) for start in range(0, len(SHEET), columns)]
    heights = [side + 8 + line * max(len(texts[index]) for index in row) + gap for row in rows]
    sheet = Image.new("RGB", (columns * (side + gap) + gap, gap + sum(heights)), "white")
    painter, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, row in enumerate(rows):
        y = gap + sum(heights[:number])
        for column, index in enumerate(row):
            x = gap + column * (side + gap)
            picture = Image.fromarray(pictures[index]).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (x, y))
            painter.rectangle((x - 1, y - 1, x + side, y + side), outline=(200, 200, 200))
            for below, text in enumerate(texts[index]):
                painter.text((x, y + side + 5 + line * below), text, fill=(40, 40, 40), font=font)
    sheet.save(path)


def draw_hundred(pictures: torch.Tensor, found: Sequence[Verdicts], path: Path) -> None:
    """A hundred pictures, ten in a row; those that a judge finds wrong are framed."""
    side, gap = pictures.shape[-1], 4
    sheet = Image.new("RGB", (10 * (side + gap) + gap, 10 * (side + gap) + gap), "white")
    painter = ImageDraw.Draw(sheet)
    for index, (picture, wrong) in enumerate(zip(pictures.movedim(1, 3).numpy()[:100], found, strict=False)):
        x, y = (gap + place * (side + gap) for place in (index % 10, index // 10))
        sheet.paste(Image.fromarray(picture), (x, y))
        if any(wrong):
            painter.rectangle((x - 3, y - 3, x + side + 2, y + side + 2), outline=(220, 0, 0), width=3)
    sheet.save(path)


def row(name: str, value: str) -> None:
    """Print a row of the table."""
    print(f"| {name} | {value} |", flush=True)


def share(count: int, of: int) -> str:
    """A count and its share."""
    return f"{count} of {of}, {count / of:.1%}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", "-m", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--prompts", type=int, default=300, help="of one and of two shapes each (default 300)"
    )
    parser.add_argument("--batch", type=int, default=100, help="pictures drawn together (default 100)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance-scale", type=float, nargs="+", default=[4.5])
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels that are guided (default: the model's own numbers)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write a sheet of twenty pictures and prompts here")
    parser.add_argument("--hundred", type=Path, help="and one of a hundred, open prompts and held-out ones")
    arguments = parser.parse_args()
    pipe = sd35.load(arguments.model, as_device(arguments.device), torch.float32)
    count = arguments.prompts
    kinds = {
        "one shape": held_out_prompts(count, shapes=1, seed=arguments.seed),
        "two shapes": held_out_prompts(count, shapes=2, seed=arguments.seed),
        "open prompts": open_prompts(max(1, count // 3), seed=arguments.seed),
    }
    print("| measured | value |\n|---|---|", flush=True)
    context = multiprocessing.get_context("spawn")
    with torch.inference_mode(), ProcessPoolExecutor(os.cpu_count(), context) as judges:
        if arguments.sheet:
            draw_sheet(pipe, arguments.sheet, arguments)
        shown: list[tuple[torch.Tensor, list[Verdicts]]] = []
        for scale in arguments.guidance_scale:
            for name, prompts in kinds.items():
                result = print_prompts(pipe, judges, name, prompts, scale, arguments)
                if scale == arguments.guidance_scale[0]:
                    shown.append(result)
        if arguments.hundred:
            (one, wrong_one), (two, wrong_two), (few, wrong_few) = shown
            pictures = torch.cat([few[:40], one[:30], two[:30]])
            draw_hundred(pictures, [*wrong_few[:40], *wrong_one[:30], *wrong_two[:30]], arguments.hundred)
        print_autoencoder(pipe, judges, count)
        both = [*kinds["one shape"][:32], *kinds["two shapes"][:32]][: max(2, count // 4)]
        for scale in (*arguments.guidance_scale, 1.0):
            print_noise(pipe, both, scale, arguments)


if __name__ == "__main__":
    main()
