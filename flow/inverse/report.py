"""What an inversion did, step by step."""

import math
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

from ..schedule import LEAST_RATIO
from ..show import shown

APART = 0.1
"""Of noise, whose own root mean square is 1: beyond it a report warns, below about 38 dB."""


@dataclass(frozen=True)
class StepReport:
    """How one step of a generation was inverted."""

    number: int
    """Of the generation's step, 0 being the first from noise."""
    sigma: float
    """Where the generation's step began, and the inversion arrived: the noisier of its ends."""
    sigma_next: float
    """Where the generation's step ended, and the inversion left."""
    evaluations: int
    """Calls of the velocity: of the sample that took most."""
    residual: tuple[float, ...] | None = None
    """Per sample, how far the generation's own step from here misses where it should end (root mean square),
    as last measured; the state returned is one update better. None of methods that do not measure it."""
    tolerance: float | None = None
    """What the residual was to reach, or the mismatch to stay within."""
    stretch: tuple[float, ...] | None = None
    """Per sample, the least ⟨e, F' e⟩ over the directions e in which the search went, of the generation's
    step F. Below 0 the step may fold: it is then not one-to-one, and another x leads to the same end. A
    suspicion from what the search met, at no cost: a strongly curved step may be suspected too. On mixtures
    of normal distributions under strong guidance every lost sample was, and about as many that were not."""
    mismatch: tuple[float, ...] | None = None
    """Per sample, how far the two states of a reversible solver were from agreeing where the generation began
    (root mean square, see `solvers.reversible`); of the last step undone. The noise is wrong by about that
    much or by far more: what a slightly other velocity does to both states nearly cancels."""

    made: tuple[int, ...] | None = None
    """Per sample, calls of the velocity, where they differ."""
    apart: tuple[float, ...] | None = None
    """Per sample, how far the way that was gone for comparison, with ten times the tolerance, is from the one
    returned (root mean square): nearly the whole error of that coarser one, more than that of this."""

    @property
    def converged(self) -> tuple[bool, ...]:
        """Per sample, whether the residual reached the tolerance; empty where none is measured."""
        if self.residual is None or self.tolerance is None:
            return ()
        return tuple(r <= self.tolerance for r in self.residual)

    @property
    def ratio(self) -> float:
        """σ' / σ of the generation's step: what it left of what is off the data; see `schedule.tailed`."""
        return self.sigma_next / self.sigma if self.sigma else math.inf

    @property
    def ambiguous(self) -> tuple[int, ...]:
        """The samples for which the generation's step seems to fold."""
        return tuple(sample for sample, stretch in enumerate(self.stretch or ()) if stretch < 0)


@dataclass(frozen=True)
class Report:
    """How a generation was inverted."""

    method: str
    solver: str
    steps: tuple[StepReport, ...]
    """In the order of the inversion, from data to noise."""

    @property
    def evaluations(self) -> int:
        """Calls of the velocity in all."""
        return sum(step.evaluations for step in self.steps)

    @property
    def mean_evaluations(self) -> float:
        """Calls of the velocity in all, as a mean over the samples."""
        return float(sum(fmean(step.made) if step.made else step.evaluations for step in self.steps))

    @property
    def converged(self) -> bool | None:
        """Whether every sample converged in every step; None of methods that do not measure it."""
        flags = [flag for step in self.steps for flag in step.converged]
        return all(flags) if flags else None

    @property
    def ambiguous(self) -> tuple[int, ...]:
        """The samples whose noise may be another than the generation's, as some step is not one-to-one."""
        return tuple(sorted({sample for step in self.steps for sample in step.ambiguous}))

    @property
    def apart(self) -> tuple[float, ...]:
        """Per sample, the most that the two ways were apart after any step; empty where one way was gone.

        Where they come nearer again, that is no proof: both may have been lost and led to the same place.
        """
        return tuple(max(ways) for ways in zip(*(step.apart or () for step in self.steps), strict=True))

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each thing that went wrong or may have; empty if all is well."""
        lines = [
            f"step {step.number} (sigma {step.sigma:.4g}): sample {sample} stopped at a residual of "
            f"{residual:.2e}, {residual / step.tolerance:.3g} times the tolerance"
            for step in self.steps
            if step.residual is not None and step.tolerance is not None
            for sample, residual in enumerate(step.residual)
            if residual > step.tolerance
        ]
        for sample in self.ambiguous:
            folds = [step for step in self.steps if sample in step.ambiguous]
            lines.append(
                f"sample {sample}: the generation seems to fold at steps "
                f"{', '.join(str(step.number) for step in folds)}. Other noise then leads to "
                "the same data and may have been found; only a reversible solver returns for certain"
            )
            lines[-1] += "".join(
                f". Step {step.number} shrinks sigma to {step.ratio:.2g} of itself, which folds easily; "
                "flow.sigmas(steps, preset='tailed') has no such step"
                for step in folds
                if 0 < step.ratio < LEAST_RATIO
            )
        lines += [
            f"sample {sample}: two ways up that were {first:.1e} apart at their first step came to be "
            f"{most:.2g} apart, and the noise is known no better than that. The generation contracts too "
            "strongly, as guidance makes it do: guide at high noise alone and limit it (interval=(0.7, 1), "
            "flow.apg), or keep a reversible solver's companion"
            for sample, (first, most) in enumerate(zip(self.steps[0].apart or (), self.apart, strict=True))
            if most > APART
        ]
        lines += [
            f"sample {sample}: undone, it is {mismatch:.1e} from where a generation begins, and what was "
            "found is wrong by about that much or more. The companion belongs to another velocity (other "
            "weights, prompt, guidance, dtype or device), or rounding grew (half precision, leapfrog over "
            "many steps)"
            for step in self.steps
            if step.mismatch is not None and step.tolerance is not None
            for sample, mismatch in enumerate(step.mismatch)
            if mismatch > step.tolerance
        ]
        return tuple(lines)

    def __str__(self) -> str:
        """A line for each step, in the order of the inversion, with the residual of its worst sample."""
        lines = [f"{'step':<6}{'sigma':>8}{'evaluations':>13}{'residual':>11}{'tolerance':>11}"]
        for step in self.steps:
            line = f"{step.number:<6}{step.sigma:>8.4f}{step.evaluations:>13}"
            if step.residual is not None and step.tolerance is not None:
                missed = "" if all(step.converged) else "  missed"
                line += f"{max(step.residual):>11.1e}{step.tolerance:>11.1e}{missed}"
            lines.append(line)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        totals = {
            "evaluations": self.evaluations,
            "converged": self.converged,
            "problems": list(self.problems),
        }
        return asdict(self) | totals


class InverseStep(NamedTuple):
    """A step of an inversion, as it is taken."""

    x: Tensor
    """(B, *S), the state where the generation's step began."""
    report: StepReport

    def __repr__(self) -> str:
        return shown(self)


@dataclass(frozen=True, repr=False)
class Inversion:
    """The noise that an inversion found, and how."""

    noise: Tensor
    """(B, *S), the state at `sigmas[0]`, in the dtype of the data (float32 or better)."""
    report: Report

    @property
    def decibels(self) -> tuple[float, ...]:
        """Per sample, the PSNR that the noise has or exceeds; empty where it was not checked.

        Over the range of the noise found, or of a standard normal's values where that is smaller: noise that
        is wrong may reach further.
        It is what the coarser way beside this one found (`StepReport.apart`), and this one is more exact.
        Where it is low the noise is lost, and by how much is a guess; where a step folds, the two may have
        found the same other noise, and `Report.ambiguous` names the samples.
        """
        usual = 2 * math.sqrt(2 * math.log(max(self.noise.numel(), 2)))
        size = min(float(self.noise.max() - self.noise.min()), usual)
        return tuple(20 * math.log10(size / most) if most else math.inf for most in self.report.apart)

    def __repr__(self) -> str:
        return shown(self)
