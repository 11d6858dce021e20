"""Teach the embedded model by training, and judge what it learned, before and after.

    python benchmarks/lessons.py hexagon --output runs/hexagon    # a new thing from 20 pictures, by a LoRA
    python benchmarks/lessons.py colour --output runs/colour      # likewise, a ninth colour
    python benchmarks/lessons.py reflow --output runs/reflow      # fewer steps to the same end
    python benchmarks/lessons.py reward --output runs/reward      # another wording, by a reward

Prints one line of JSON a result. Each takes about twenty minutes of a processor core at most. What was cut
off goes on when it is asked for again, but for the reward. Pictures are read back by tests/judge.py, which
shares no code with what draws, trains or rewards.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that nothing needs to be installed

import lessons_colour
import lessons_hexagon
import lessons_reflow
import lessons_reward

LESSONS = {
    "hexagon": (lessons_hexagon.lesson, 600),
    "colour": (lessons_colour.lesson, 600),
    "reflow": (lessons_reflow.lesson, 1100),
    "reward": (lessons_reward.lesson, 25),
}
"""How it is given, and in how many steps of the optimizer."""


def main() -> None:
    """Give the lesson that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lesson", choices=LESSONS)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, metavar="N", help="in place of the lesson's own")
    args = parser.parse_args()
    lesson, steps = LESSONS[args.lesson]
    lesson(args.output, args.steps or steps)


if __name__ == "__main__":
    main()
