"""Options of ControlNets: each named once for every ControlNet, in their order."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inputs import PictureSettings
from ..kinds import NONE
from .options import add_options

if TYPE_CHECKING:
    from ..controls import Control

OF_ALL = ("control_rule", "control_uncond")
"""Settings that are those of all ControlNets together."""


def add_control(parser: argparse.ArgumentParser) -> None:
    """Which ControlNets steer, by which pictures, how strongly and when."""
    group = parser.add_argument_group(
        "ControlNets", "Several: repeat --control, and the others in the same order, or once for all."
    )
    group.add_argument(
        "--control",
        action="append",
        metavar="FILE",
        help="a ControlNet: a file, a folder, owner/name on the Hub, or outline (of the embedded model, for "
        "drawings of outlines, white on black); none leaves out those of a saved picture",
    )
    group.add_argument("--control-image", action="append", metavar="PICTURE", help="what it reads")
    group.add_argument(
        "--control-kind",
        action="append",
        metavar="NAME",
        help="what is made of the picture: raw (the default: it is a picture of edges, a depth map, ... "
        "already), canny (edges are drawn from a photograph), blur, or depth (as raw)",
    )
    group.add_argument(
        "--control-scale", action="append", type=float, metavar="X", help="how strongly (default 1)"
    )
    group.add_argument(
        "--control-start",
        action="append",
        type=float,
        metavar="X",
        help="from this part of the steps (default 0)",
    )
    group.add_argument(
        "--control-end",
        action="append",
        type=float,
        metavar="X",
        help="to this part of the steps (default 1)",
    )
    group.add_argument(
        "--control-mask",
        action="append",
        metavar="MASK",
        help="for ControlNets made for inpainting: white is redrawn",
    )
    add_options(group, PictureSettings, OF_ALL)


def given_control(args: argparse.Namespace) -> "dict[str, Any]":
    """The ControlNets that the user asked for, as the setting `control`; empty where nothing was said.

    Raises:
        SettingsError: an option without --control, or given another number of times.
    """
    from ..errors import SettingsError

    names = ("image", "kind", "scale", "start", "end", "mask")
    given = {name: value for name in names if (value := getattr(args, f"control_{name}")) is not None}
    if args.control is None:
        if given:
            raise SettingsError(f"--control-{next(iter(given))} has no effect without --control FILE")
        return {}
    if args.control == [NONE]:
        return {"control": ()}
    count = len(args.control)
    for name, values in given.items():
        if len(values) not in (1, count):
            raise SettingsError(
                f"--control-{name} is given {len(values)} times for {count} ControlNets: once for each, "
                "or once for all"
            )
    return {"control": tuple(_control(args.control[index], given, index) for index in range(count))}


def _control(source: str, given: dict[str, list[Any]], index: int) -> "Control":
    from ..controls import Control
    from ..errors import SettingsError

    own: dict[str, Any] = {name: values[min(index, len(values) - 1)] for name, values in given.items()}
    if "image" not in own:
        raise SettingsError(f"{source} reads a picture: give it by --control-image")
    own |= {name: Path(own[name]) for name in ("image", "mask") if name in own}
    return Control(source, **own)
