"""Everything that can be said of one graphics card, in one call and in the time that is given.

    python benchmarks/gpu.py --minutes 3 --output results    needs no network and no installation
    python benchmarks/gpu.py --small --device cpu            small models: whether everything runs

Models are those of SD3.5 at their real sizes, with random weights made on the card. What matters most is
measured first; what the time does not allow is named and left out; what fails is told in a line. Every row
is printed and written as it is found, and the whole is printed last, as Markdown. The floor of a row is the
time that its floating-point operations take at the rate of a large bfloat16 matrix product on the same card.
"""

import argparse
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN = time.monotonic()
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that nothing needs to be installed

import torch  # noqa: E402
from gpu_checks import drawing, gpu_tests, verify  # noqa: E402
from gpu_fp8 import fp8, fp8_compiled  # noqa: E402
from gpu_kernels import attentions, ceilings, facts, shapes  # noqa: E402
from gpu_memory import memory  # noqa: E402
from gpu_models import SMALL, Sizes  # noqa: E402
from gpu_peers import diffusers  # noqa: E402
from gpu_report import Report  # noqa: E402
from gpu_rows import Bench, compiled, free, generation, text_encoders, transformer  # noqa: E402
from gpu_tiny import tiny_autoencoder  # noqa: E402
from gpu_training import training  # noqa: E402
from gpu_vae import autoencoder  # noqa: E402

LATE = 6.0
"""Seconds after the end at which a row that does not return is left, and the table printed without it."""


@dataclass(frozen=True)
class Section:
    """A part of the run."""

    name: str
    run: Callable[[Bench], None]
    seconds: float
    """About how long it takes on an H100; it is left out where less is left."""
    cuda: bool = False
    """Whether it needs CUDA."""


def _transformer(size: str, pixels: str) -> Callable[[Bench], None]:
    return lambda bench: transformer(bench, size, getattr(bench.sizes, size), getattr(bench.sizes, pixels))


SECTIONS = [
    Section("ceilings", ceilings, 3),
    Section("medium", _transformer("medium", "pixels"), 6),
    Section("generation", generation, 12),
    Section("verify", verify, 5),
    Section("drawing", drawing, 10),
    Section("vae", autoencoder, 6),
    Section("memory", memory, 20),
    Section("large", _transformer("large", "pixels"), 8),
    Section("shapes", shapes, 2),
    Section("attentions", attentions, 2),
    Section("medium-512", _transformer("medium", "fewer_pixels"), 3),
    Section("diffusers", diffusers, 15),
    Section("fp8", fp8, 4),
    Section("compiled", compiled, 30),
    Section("text", text_encoders, 6),
    Section("tiny", tiny_autoencoder, 25),
    Section("training", training, 60),
    Section("fp8-compiled", fp8_compiled, 30, cuda=True),
    Section("large-512", _transformer("large", "fewer_pixels"), 4),
    Section("tests", gpu_tests, 12, cuda=True),
]
"""In the order of their importance."""


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Run what there is time for; 1 where a part failed."""
    args = arguments().parse_args(argv)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
    report = Report(args.output)
    end = BEGIN + 60 * args.minutes
    bench = Bench(device, SMALL if args.small else Sizes(), report, lambda: end - time.monotonic())
    watch = threading.Timer(bench.left() + LATE, _leave, [report])
    watch.daemon = True
    watch.start()
    facts(bench)
    report.facts["seconds to import"] = round(time.monotonic() - BEGIN, 1)
    results = [attempt(section, bench) for section in SECTIONS if section.name in args.only]
    report.facts["seconds in all"] = round(time.monotonic() - BEGIN, 1)
    report.write()
    watch.cancel()
    print(f"\n{report.table()}", flush=True)
    return 0 if all(results) else 1


def attempt(section: Section, bench: Bench) -> bool:
    """Run one part if it fits into the time; whether it did not fail."""
    if section.cuda and not bench.is_cuda:
        bench.report.add(section.name, remark="left out: needs CUDA")
        return True
    if bench.left() < section.seconds:
        remark = f"left out: {bench.left():.0f} s remain, about {section.seconds:.0f} s are needed"
        bench.report.add(section.name, remark=remark)
        return True
    begin = time.monotonic()
    try:
        section.run(bench)
    except Exception as error:
        first = str(error).strip().splitlines() or [""]
        bench.report.add(section.name, remark=f"FAILED: {type(error).__name__}: {first[0][:300]}")
        bench.report.text("errors.txt", f"{section.name}\n{traceback.format_exc()}")
        return False
    finally:
        free(bench.device)
        print(f"  ({section.name}: {time.monotonic() - begin:.1f} s, {bench.left():.0f} s left)", flush=True)
    return True


def _leave(report: Report) -> None:
    """End the process from beside a row that does not return."""
    report.add("the rest", remark="left out: the time is over")
    print(f"\n{report.table()}", flush=True)
    os._exit(1)


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="that all of it may take (default 8)")
    parser.add_argument("--output", "-o", type=Path, help="a folder for gpu.json, gpu.txt and what is longer")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--small", action="store_true", help="small models in place of the released sizes")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these parts alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
