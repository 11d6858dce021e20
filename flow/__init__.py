"""Rectified flow, the mathematics alone: path, schedule, solvers, guidance, inverse, objective.

Everything works on velocity(x, sigma) and on states of any shape; nothing here knows a network. Reading
order: path, schedule, solvers/base, solvers/runge_kutta, guidance, objective, inverse.
"""

from .errors import FlowError
from .guidance import guide
from .objective import cfm_loss, sample_sigmas
from .path import denoised, interpolate, target
from .schedule import sigmas, start_step
from .solvers import SOLVERS, Solver, Step, Velocity, euler, last, solve

__all__ = [
    "SOLVERS",
    "FlowError",
    "Solver",
    "Step",
    "Velocity",
    "cfm_loss",
    "denoised",
    "euler",
    "guide",
    "interpolate",
    "last",
    "sample_sigmas",
    "sigmas",
    "solve",
    "start_step",
    "target",
]
