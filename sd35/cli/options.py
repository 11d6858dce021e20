"""Options that are made from the tables of settings, and what was given with them."""

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

from ..errors import SettingsError
from ..fields import MISSING, Field, default_of, table
from ..kinds import Options

PROMPTS = {"clip_l": "CLIP-L", "clip_g": "CLIP-G", "t5": "T5"}
"""Encoders that may have a text of their own."""


def add_settings(
    parser: argparse.ArgumentParser, title: str, request: type, *, but: Iterable[str] = ()
) -> None:
    """An option for each setting of a request. One that is not given is not in the arguments.

    Args:
        parser: of the command.
        title: of the group.
        request: whose table.
        but: settings that this command does not have.
    """
    names = [name for name in table(request) if name not in but]
    add_options(parser.add_argument_group(title), request, names)
    for name in names:
        nested = table(request)[name].kind.argument.get("of")
        if nested is not None:
            group = parser.add_argument_group(name)
            for inner, one in table(nested).items():
                _add_option(group, f"{name}.{inner}", inner, one, default_of(nested, inner))


def add_options(group: Any, request: type, names: Iterable[str]) -> None:
    """An option in a group for each of some settings of a request."""
    told_of = table(request)
    for name in names:
        if told_of[name].is_option:
            _add_option(group, name, name, told_of[name], default_of(request, name))


def _add_option(group: Any, dest: str, name: str, told: Field, default: Any) -> None:
    spelled = [told.spelled(name), *([told.also] if told.also else [])]
    text = (told.help + (f" (default {shown})" if (shown := _shown(default)) else "")).replace("%", "%%")
    needed = {"required": True} if default is MISSING else {}
    group.add_argument(
        *spelled, dest=dest, default=argparse.SUPPRESS, help=text, **needed, **told.kind.option()
    )


def _shown(default: Any) -> str:
    """A default as a user writes it; empty where the help tells it, or there is none."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, int | float):
        return f"{default:g}"
    if isinstance(default, tuple):
        return " ".join(_shown(one) for one in default)
    return default if isinstance(default, str) else ""


def given_settings(args: argparse.Namespace, request: type) -> dict[str, Any]:
    """Those settings of a request that the user gave.

    Raises:
        SettingsError: an option of a solver or a method that is no NAME=VALUE.
    """
    given: dict[str, Any] = {}
    for name, told in table(request).items():
        if told.is_option and hasattr(args, name):
            value = getattr(args, name)
            given[name] = options_of(value) if isinstance(told.kind, Options) else value
        start = f"{name}."
        if inner := {
            dest.removeprefix(start): value for dest, value in vars(args).items() if dest.startswith(start)
        }:
            given[name] = inner
    return given


def options_of(pairs: list[str]) -> dict[str, Any]:
    """Options given as NAME=VALUE; a value is a number, true, false or null as in JSON, and else a word.

    Raises:
        SettingsError: one of them is no NAME=VALUE.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise SettingsError(f"an option is given as NAME=VALUE, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """A text of its own for each encoder."""
    group = parser.add_argument_group("prompts of single encoders")
    for encoder, name in PROMPTS.items():
        group.add_argument(
            f"--prompt-{encoder.replace('_', '-')}",
            metavar="PROMPT",
            dest=f"prompt_{encoder}",
            help=f"what {name} reads in place of the prompt",
        )


def prompt_of(args: argparse.Namespace) -> str | dict[str, str] | None:
    """The prompt, with the texts of single encoders; None where there is none.

    Raises:
        SettingsError: an encoder has a text and there is no prompt for the others.
    """
    own = {name: text for name in PROMPTS if (text := getattr(args, f"prompt_{name}")) is not None}
    if own and args.prompt is None:
        raise SettingsError(
            f"there is a prompt for {', '.join(own)} and none for the others: give one to all"
        )
    return {"text": args.prompt, **own} if own else args.prompt


def tell(notes: Iterable[str]) -> None:
    """Print notes on stderr."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
