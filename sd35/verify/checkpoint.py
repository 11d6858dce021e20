"""Checks of a user's own weights: are they whole, do they fit, are they numbers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weights import CheckpointError, resolve
from weights.checks import Check, checks_of
from weights.component import Component


@dataclass(frozen=True)
class Finding:
    """One check of one part of a checkpoint."""

    part: str
    check: str
    result: str  # what was found, in words
    passed: bool | None  # None where it is neither right nor wrong
    seconds: float


def check_checkpoint(source: str | Path) -> Iterator[Finding]:
    """Check every part of a source: keys, shapes, values, and the position table of the transformer.

    Every weight is read, and what is on the Hub is downloaded.

    Args:
        source: as for `sd35.load`.

    Returns:
        An iterator of findings, each check being made when it is asked for.

    Raises:
        CheckpointError: there is no such source, or it holds no model.
    """
    components = resolve(source).components
    return (finding for part, component in components.items() for finding in _findings(part, component))


def _findings(part: str, component: Component) -> Iterator[Finding]:
    checks, begin = checks_of(component, whole=True), time.perf_counter()
    while True:
        try:
            check = next(checks, None)
        except CheckpointError as error:  # a file that cannot be read: what was in the way is the finding
            check, checks = Check("readable", str(error), False), iter(())
        if check is None:
            return
        yield Finding(part, check.name, check.result, check.passed, time.perf_counter() - begin)
        begin = time.perf_counter()
