"""Solvers of the flow, all under one signature."""

from .base import Step, Velocity, last
from .runge_kutta import euler
from .table import SOLVERS, Solver, solve

__all__ = ["SOLVERS", "Solver", "Step", "Velocity", "euler", "last", "solve"]
