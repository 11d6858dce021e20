"""A lesson: fewer steps to the same end, by reflow on pairs of the model's own flow."""

from pathlib import Path
from typing import Any

import torch
from lessons_judged import OWN, clocked, decibels, ends, known, right, told

import flow
import sd35
from sd35.train.state import FILE
from vae.image import to_uint8

TESTED = 16
"""Prompts that are measured; pairs have others."""
PROMPTS, PAIRS = 1200, 1600
SEED = 1000
"""Pairs have the noise of this seed and of those that follow, none of which is measured with."""
SOLVER, STEPS, TABLE, SHIFT = "fireflow", 14, "tailed", 5.0
"""By which pairs are drawn: in 15 evaluations."""
FEW = (1, 2, 4, 8, 14)
CONVERGED = 24
"""Steps of Runge and Kutta, each of four evaluations, that the flow is followed with to its end."""


def lesson(folder: Path, steps: int) -> None:
    """Train, and measure how near to the end of the model's own flow so many steps of Euler come."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("\n".join(known(PROMPTS, seed=21)))
    tested = known(TESTED, seed=22)
    pipe = sd35.load("tiny")
    converged = ends(pipe, tested, flow.sigmas(CONVERGED), solver="rk4", **OWN)

    def measured(pipe: sd35.Pipeline, **guidance: Any) -> dict[str, dict[int, float | int]]:
        found = {count: ends(pipe, tested, flow.sigmas(count), **guidance) for count in FEW}
        with torch.inference_mode():
            drawn = {n: to_uint8(pipe.decode(one)).movedim(1, 3).numpy() for n, one in found.items()}
        return {
            "decibels": {count: decibels(one, converged) for count, one in found.items()},
            "right": {count: right(one, tested) for count, one in drawn.items()},
        }

    told("reflow", when="before", of=TESTED, **measured(pipe, **OWN))
    narrow = sd35.load("tiny", dtype=torch.bfloat16)
    pairs = ends(narrow, tested, flow.sigmas(STEPS, SHIFT, TABLE), solver=SOLVER, **OWN)
    told("reflow", when="pairs", decibels=decibels(pairs, converged))
    resume = (folder / "run" / FILE).is_file()
    with clocked() as spent:
        path = sd35.train_reflow(
            "tiny",
            folder / "prompts.txt",
            folder / "run",
            places={"dtype": "bfloat16", "resume": resume, "progress": True},
            whole=True,
            pairs=PAIRS,
            pair_solver=SOLVER,
            pair_steps=STEPS,
            pair_schedule=TABLE,
            pair_guidance=OWN["scale"],
            pair_interval=OWN["interval"],
            schedule_shift=SHIFT,
            seed=SEED,
            steps=steps,
            batch_size=8,
            learning_rate=5e-4,
            optimizer="muon",
            density="uniform",
            warmup=20 if steps > 20 else 0,
            save_every=100,
        )
    taught = sd35.load(path, vae="tiny", text_encoders="tiny", dtype=torch.float32)
    told("reflow", when="after", pairs=PAIRS, steps=steps, **spent, **measured(taught, scale=1.0))
