"""Which version of this project this is."""

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """The version of this project, or "source" where it was not installed."""
    try:
        return version("sd35")
    except PackageNotFoundError:
        return "source"
