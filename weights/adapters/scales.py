"""How strong each update of a LoRA is meant to be: alpha, from wherever its tool has put it."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import AdapterError

METADATA = "lora_adapter_metadata"
"""The header's key under which diffusers stores what PEFT would write into adapter_config.json."""

_OF_PART = {"mmdit": "transformer.", "clip_l": "text_encoder.", "clip_g": "text_encoder_2."}


@dataclass(frozen=True)
class PeftConfig:
    """Rank and alpha as PEFT has them: one for all modules, and exceptions by name.

    A pattern is a regular expression that the end of a module's name must match, after a dot.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    by_root: bool  # rsLoRA (arXiv:2312.03732): alpha / √rank

    @classmethod
    def parse(cls, config: Mapping[str, Any], *, name: str) -> "PeftConfig":
        """Read a configuration, or an AdapterError that says what is wrong with it."""
        if config.get("peft_type", "LORA") != "LORA":
            raise AdapterError(f"{name}: it is a PEFT adapter of the type {config['peft_type']}, not a LoRA")
        try:
            parsed = cls(
                int(config["r"]),
                float(config["lora_alpha"]),
                {str(key): int(value) for key, value in (config.get("rank_pattern") or {}).items()},
                {str(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()},
                bool(config.get("use_rslora", False)),
            )
            for pattern in (*parsed.rank_pattern, *parsed.alpha_pattern):
                re.compile(pattern)
        except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
            raise AdapterError(
                f"{name}: its PEFT configuration cannot be read ({error!r}), and nothing else tells the "
                "file's scale: save it again with its trainer"
            ) from None
        return parsed

    def scale(self, module: str, rank: int, *, name: str) -> tuple[float, float]:
        """Alpha, and what the update is multiplied by.

        Args:
            module: its name in the file, without prefix and suffix.
            rank: of its tensors.
            name: the file, for messages.

        Raises:
            AdapterError: the configuration means another rank than the tensors have.
        """
        stated = _by_pattern(self.rank_pattern, module, self.rank)
        if stated != rank:
            raise AdapterError(
                f"{name}: its metadata gives {module} the rank {stated} and its tensors have {rank}, so its "
                "scale alpha / rank is not known: save it again with its trainer"
            )
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha, alpha / (math.sqrt(rank) if self.by_root else rank)


def _by_pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """The value of the first pattern that a module's name ends in."""
    return next(
        (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)),
        otherwise,
    )


def peft_configs(
    metadata: Mapping[str, str], beside: Mapping[str, Any] | None, *, name: str
) -> dict[str, PeftConfig]:
    """Part to its PEFT configuration, from a file's header or from adapter_config.json beside it.

    Args:
        metadata: of the header.
        beside: adapter_config.json; None where there is none.
        name: the file, for messages.

    Raises:
        AdapterError: there is one and it cannot be read.
    """
    if METADATA not in metadata:
        return {} if beside is None else {"mmdit": PeftConfig.parse(beside, name=name)}
    try:
        stored = json.loads(metadata[METADATA])
        if not isinstance(stored, dict):
            raise ValueError("it should hold an object")
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{name}: its header's {METADATA} is no JSON ({error}), and without it nothing tells the file's "
            "scale: fetch it again, or save it again with its trainer"
        ) from None
    if {"r", "lora_alpha"} & set(stored):  # SimpleTuner leaves the part out
        return {"mmdit": PeftConfig.parse(stored, name=name)}
    grouped = {
        part: {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
        for part, prefix in _OF_PART.items()
    }
    return {part: PeftConfig.parse(config, name=name) for part, config in grouped.items() if config}
