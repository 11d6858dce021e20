"""Solvers of the flow, all under one signature: solver(velocity, x, sigmas, **options) yields steps."""

from .adaptive import dopri5
from .base import Step, Velocity, last
from .bitexact import bitexact, on_grid
from .companion import Companion
from .multistep import ab2, dpmpp_2m, fireflow, flow_dpmpp_2m
from .reversible import leapfrog, reversible_heun
from .rex import rex
from .runge_kutta import euler, heun, midpoint, rk4
from .stochastic import Transition, sde, transition
from .table import SOLVERS, Solution, Solver, companion_of, integrate, solve
from .two_step import bdia, obelm

__all__ = [
    "SOLVERS",
    "Companion",
    "Solution",
    "Solver",
    "Step",
    "Transition",
    "Velocity",
    "ab2",
    "bdia",
    "bitexact",
    "companion_of",
    "dopri5",
    "dpmpp_2m",
    "euler",
    "fireflow",
    "flow_dpmpp_2m",
    "heun",
    "integrate",
    "last",
    "leapfrog",
    "midpoint",
    "obelm",
    "on_grid",
    "reversible_heun",
    "rex",
    "rk4",
    "sde",
    "solve",
    "transition",
]
