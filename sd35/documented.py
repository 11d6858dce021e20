"""Signatures and docstrings of functions that take settings, written from the tables of the settings."""

from collections.abc import Callable
from dataclasses import MISSING
from inspect import Parameter, cleandoc, signature
from textwrap import wrap
from typing import Any, TypeVar

from .fields import default_of, table

Function = TypeVar("Function", bound=Callable[..., Any])


def takes(*requests: type, but: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Say of a function with `**given` which settings it takes: for `help`, and for completion in a notebook.

    Args:
        requests: whose settings.
        but: settings that it does not take, or under a name of its own.
    """

    def told(function: Function) -> Function:
        shown = signature(function)
        kept = [one for one in shown.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        names, lines = {one.name for one in kept}, []
        for request in requests:
            for name, setting in table(request).items():
                if setting.decides == "record" or name in (*but, *names):
                    continue
                names.add(name)
                default = default_of(request, name)
                kept.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default))
                said = "" if default in (None, MISSING) else f" ({default!r})"
                lines += wrap(f"{name}: {setting.help}{said}", 100, subsequent_indent="    ")
        function.__doc__ = cleandoc(function.__doc__ or "") + "\n\nSettings:\n    " + "\n    ".join(lines)
        function.__signature__ = shown.replace(parameters=kept)
        return function

    return told
