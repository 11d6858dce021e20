"""Which version of this project this is."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache  # to find it, all that is installed is searched
def release() -> str:
    """The version of this project, or "source" where it was not installed."""
    try:
        return version("sd35")
    except PackageNotFoundError:
        return "source"
