"""What a reversible generation leaves beside its latents, in a form that can be saved."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import FlowError
from ..show import shown


@dataclass(frozen=True, repr=False)
class Companion:
    """The second state of a reversible solver at the end of a generation, and what it belongs to.

    `tensors` and `settings` are all there is, and `settings` is JSON: save them in whatever file you like,
    and build the companion again from them.
    """

    tensors: Mapping[str, Tensor]
    """By the names that the solver documents."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """solver, options, sigmas, shape, dtype, and under `extra` whatever the caller gave: JSON values."""

    def __repr__(self) -> str:
        return shown(self)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings, hexadecimal: equal for generations that undo each other."""
        return fingerprint(self.settings)

    def check(self, expected: Mapping[str, Any]) -> None:
        """See that the companion belongs to these settings.

        Raises:
            FlowError: it does not; the message names every setting that differs, with both values. Or its
                tensors hold values that are not finite.
        """
        if wrong := [name for name, tensor in self.tensors.items() if not tensor.isfinite().all()]:
            raise FlowError(f"the companion is damaged: values of {', '.join(wrong)} are NaN or infinite")
        if self.fingerprint == fingerprint(expected):
            return
        ours, theirs = _flat(self.settings), _flat(expected)
        wrong = [
            f"{name}: {_short(ours.get(name))} in the companion, {_short(theirs.get(name))} here"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        raise FlowError(f"the companion belongs to another generation: {'; '.join(wrong)}")


def settings_of(
    solver: str, options: Mapping[str, Any], x: Tensor, sigmas: Tensor, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that a generation and its undoing must share.

    Args:
        solver: its name.
        options: its keyword arguments.
        x: a state of the generation, (B, *S).
        sigmas: of the generation, (steps + 1,), exact in JSON as numbers.
        extra: JSON values of the caller's, such as the prompt and the guidance scale.
    """
    return {
        "solver": solver,
        "options": dict(options),
        "sigmas": sigmas.tolist(),
        "shape": list(x.shape),
        "dtype": str(x.dtype).removeprefix("torch."),
        "extra": dict(extra),
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings as canonical JSON, hexadecimal.

    Raises:
        FlowError: a setting is not a JSON value.
    """
    try:
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False, default=dict)
    except (TypeError, ValueError) as error:
        raise FlowError(f"settings of a companion must be JSON values: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings, the caller's among the others, so that each can be named by itself."""
    plain = json.loads(json.dumps(settings, default=dict))
    return plain | plain.pop("extra", {})


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
