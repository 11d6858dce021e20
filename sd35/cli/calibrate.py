"""Find the noise levels on which a solver keeps nearest to a model's flow, for so many steps.

    sd35 calibrate "a red circle" "a blue square" --steps 8 -o eight.json
    sd35 calibrate "a red circle" "a star" --steps 7 --calibration search --solver fireflow -o seven.json
    sd35 generate "a green ring" --schedule seven.json

The table belongs to the model, the guidance, the number of steps and the solver that it is made with.
"""

import argparse
import sys
from pathlib import Path

from ..methods import NOT_CALIBRATED, Calibrating
from ..settings import Settings
from .model import add_model, found_model, load_pipeline
from .options import add_settings, given_settings, tell

SUMMARY = "make a table of noise levels for a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.usage = "%(prog)s [PROMPT ...] -o FILE [options]"
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="of the kind that will be drawn: 4 to 16"
    )
    parser.add_argument(
        "--prompts-file", metavar="FILE", help="prompts, one in each line, empty lines aside; - reads stdin"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the table, as .json"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    add_settings(parser, "calibration", Calibrating)
    add_settings(parser, "sampling", Settings, but=NOT_CALIBRATED)
    add_model(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate, write the table, print it."""
    from ..errors import SettingsError
    from ..saved.write import check_output, written
    from ..schedules import calibration_text
    from ..tasks.calibrate import Calibrate, calibrate
    from .generate import read_prompts

    check_output([args.output], suffix=".json", overwrite=args.overwrite)
    if bool(args.prompts) == (args.prompts_file is not None):
        raise SettingsError("give prompts, or a file of prompts: one of them")
    prompts = args.prompts or read_prompts(args.prompts_file)
    given = {**given_settings(args, Calibrating), **given_settings(args, Settings)}
    request = Calibrate.of(prompts, given)
    found = found_model(args, request.settings)
    request = Calibrate.of(prompts, given, variant=found.variant)
    tell(request.notes)
    pipe = load_pipeline(args, request.settings, found=found)
    table = calibrate(pipe, request, progress=sys.stderr.isatty())
    with written(args.output, overwrite=args.overwrite) as temporary:
        temporary.write_text(calibration_text(table), encoding="utf-8")
    print(", ".join(f"{level:.4g}" for level in table.sigmas))
    print(f"{table.rms:.3g} from the fine table, root mean square, over {table.samples} pictures")
    print(f"for the solver {table.solver}")
    if table.computed is not None:
        print("computed: " + " ".join(map(str, table.computed)))
    print(args.output)
    return 0
