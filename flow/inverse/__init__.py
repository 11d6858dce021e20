"""From data back to noise."""

from .eigenvalues import step_eigenvalues
from .invert import METHODS, Method, inversion, invert, inverting
from .report import InverseStep, Inversion, Report, StepReport

__all__ = [
    "METHODS",
    "InverseStep",
    "Inversion",
    "Method",
    "Report",
    "StepReport",
    "inversion",
    "invert",
    "inverting",
    "step_eigenvalues",
]
