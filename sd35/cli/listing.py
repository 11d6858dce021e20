"""List what can be chosen by name, each with one line on what it is."""

import argparse

SUMMARY = "list solvers, methods and other names with one line each"

TOLD = {
    "guidance rules": {
        "plain": "away from the negative prompt, by the guidance scale",
        "cfg_zero": "CFG-Zero*: the negative velocity is scaled to fit first; --zero-steps is its other half",
        "apg": "adaptive projected guidance: what only saturates is left out; --apg-parallel, --apg-norm",
    },
    "schedules": {
        "reference": "Stability's table, to the last bit",
        "diffusers": "that of diffusers, to the last bit",
        "linear": "evenly spaced levels, shifted once",
        "tailed": "linear with a geometric end, by which it can be inverted; --least-ratio bounds its steps",
    },
    "marks": {
        "tree_rings": "rings of chosen values in the noise's Fourier transform",
        "gaussian_shading": "an encrypted message in the signs of the noise, many times over",
    },
    "policies": {
        "reference": "prompts as Stability's code reads them, T5's of any length",
        "diffusers": "as diffusers reads them: 256 tokens of T5",
        "reference-exact": "as Stability's code, with its limit of characters and its splitting by words",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.add_argument("kind", nargs="?", help="solvers, methods, edits, ...; all by default")


def run(args: argparse.Namespace) -> int:
    """Print the lists."""
    from ..errors import SettingsError

    lists = names()
    chosen = {kind: lines for kind, lines in lists.items() if args.kind in (None, kind, kind.split()[0])}
    if not chosen:
        raise SettingsError(f"there are lists of {', '.join(lists)}; got {args.kind!r}")
    for kind, lines in chosen.items():
        width = max(len(name) for name in lines)
        print(kind)
        for name, summary in lines.items():
            print(f"  {name:<{width}}  {summary}")
    return 0


def _cost(evaluations: int | None) -> str:
    if evaluations is None:
        return "as many evaluations as it takes"
    return f"{evaluations} evaluation{'s' * (evaluations > 1)} a step"


def names() -> dict[str, dict[str, str]]:
    """By kind, the names that can be chosen, and what each is."""
    import flow

    from ..controls import CONTROL_KINDS
    from ..methods import EDITS

    solvers = {
        name: f"{one.summary} (order {one.order}, {_cost(one.evaluations)})"
        for name, one in flow.SOLVERS.items()
    }
    methods = {name: one.summary for name, one in flow.METHODS.items()}
    return {
        "solvers": solvers,
        "methods": methods,
        "edits": dict(EDITS),
        "control kinds": dict(CONTROL_KINDS),
        **TOLD,
    }
