"""How well the embedded model draws: prompts it never saw, read back by the judge of the tests.

    python benchmarks/tiny.py                       # 300 prompts of one shape, 300 of two; minutes
    python benchmarks/tiny.py --sheet sheet.png     # and a sheet of pictures

Prints Markdown. The prompts name combinations of attributes that training held out. A picture is right
when the judge, which shares no code with what drew the training pictures, finds just the shapes of the
prompt, of the right kind, colour, size and place or relation, on the right background.
"""

import argparse
import importlib.util
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import sd35
from sd35.tiny.autoencoder import pictures, pictures_of, psnr
from sd35.tiny.captions import caption, held_out_prompts, parse
from sd35.tiny.fit import seeded
from sd35.tiny.scenes import training_scene
from sd35.tiny.transformer import FINISH
from vae.image import to_pil

ROOT = Path(__file__).resolve().parents[1]
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
    "",
)
"""Ten prompts that say it all, and two that leave much open."""


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


def load_judge() -> ModuleType:
    """The judge, from where the tests have it."""
    spec = importlib.util.spec_from_file_location("judge", ROOT / "tests" / "judge.py")
    assert spec is not None
    assert spec.loader is not None
    judge = importlib.util.module_from_spec(spec)
    sys.modules["judge"] = judge
    spec.loader.exec_module(judge)
    return judge


def judged(
    pipe: sd35.Pipeline, judge: ModuleType, prompts: list[str], arguments: argparse.Namespace
) -> list[list[str]]:
    """What the judge holds against each picture; an empty list where it is right."""
    result = pipe.generate(
        prompts,
        seed=arguments.seed,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        batch_size=30,
        policy=arguments.policy,
        progress=sys.stderr.isatty(),
    )
    readings = [judge.read(np.asarray(image)) for image in result.images]
    return [
        judge.disagreements(reading, parse(prompt)) for reading, prompt in zip(readings, prompts, strict=True)
    ]


def given_back(pipe: sd35.Pipeline, judge: ModuleType, count: int = 64) -> int:
    """Of `count` training pictures that went through the autoencoder, how many the judge reads right."""
    generator = seeded(1, 9)
    scenes = [training_scene(generator) for _ in range(count)]
    image = pictures_of(scenes, generator, pipe.device, FINISH.jitter)
    decoded = torch.cat([pipe.decode(pipe.encode(part)) for part in image.split(16)])
    claims = [parse(caption(scene, generator, complete=True)) for scene in scenes]
    readings = [judge.read(np.asarray(to_pil(one))) for one in decoded]
    return sum(judge.agrees(reading, claim) for reading, claim in zip(readings, claims, strict=True))


def draw_sheet(pipe: sd35.Pipeline, path: Path, arguments: argparse.Namespace) -> None:
    """Draw pictures with their prompts under them, four in a row."""
    result = pipe.generate(
        list(SHEET), seed=arguments.seed, steps=arguments.steps, guidance_scale=arguments.guidance_scale
    )
    side, gap, text_height, columns = 192, 16, 46, 4
    rows = -(-len(SHEET) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + text_height + gap) + gap), "white")
    painter, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, (image, prompt) in enumerate(zip(result.images, SHEET, strict=True)):
        x = gap + index % columns * (side + gap)
        y = gap + index // columns * (side + text_height + gap)
        sheet.paste(image.resize((side, side), Image.Resampling.LANCZOS), (x, y))
        painter.rectangle((x - 1, y - 1, x + side, y + side), outline=(200, 200, 200))
        lines = textwrap.wrap(prompt or "(the empty prompt)", 32)
        painter.text((x, y + side + 5), "\n".join(lines), fill=(40, 40, 40), font=font)
    sheet.save(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", "-m", default="tiny")
    parser.add_argument("--prompts", type=int, default=300, help="of each kind (default 300)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance-scale", type=float, default=4.5)
    parser.add_argument("--policy", default="reference")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write a sheet of pictures here")
    arguments = parser.parse_args()
    pipe, judge = sd35.load(arguments.model), load_judge()

    print("| measured | value |\n|---|---|")
    with torch.inference_mode():
        for name, jitter in {"shapes as they are drawn": FINISH.jitter, "shapes further astray": 1.0}.items():
            decibels = psnr(pipe.vae, pictures(seeded(1, 8), 64, pipe.device, jitter))
            print(f"| autoencoder, 64 pictures, {name}: PSNR, mean | {decibels.mean():.2f} dB |")
            print(f"| autoencoder, 64 pictures, {name}: PSNR, worst | {decibels.min():.2f} dB |")
        print(f"| autoencoder, 64 pictures: read right by the judge | {given_back(pipe, judge)} |")
    for shapes, name in ((1, "one shape"), (2, "two shapes")):
        prompts = held_out_prompts(arguments.prompts, shapes=shapes, seed=arguments.seed)
        verdicts = judged(pipe, judge, prompts, arguments)
        right = sum(not verdict for verdict in verdicts)
        print(f"| {name}, {len(prompts)} held-out prompts: right | {right / len(prompts):.1%} |")
        for fault, mark in FAULTS.items():
            faulty = sum(any(mark in complaint for complaint in verdict) for verdict in verdicts)
            print(f"| {name}: {fault} | {faulty / len(prompts):.1%} |")
    if arguments.sheet:
        draw_sheet(pipe, arguments.sheet, arguments)


if __name__ == "__main__":
    main()
