"""A prompt: one text for all encoders, or a text for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .tokenizer import check_text

EncoderName = Literal["clip_l", "clip_g", "t5"]


@dataclass(frozen=True)
class Prompt:
    """What is asked for; an encoder without a text of its own reads `text`.

    Raises:
        ValueError: a field is no string (all but `text` may be None), or holds half of a surrogate pair.
    """

    text: str = ""
    clip_l: str | None = None
    clip_g: str | None = None
    t5: str | None = None

    def __post_init__(self) -> None:
        check_text(self.text)
        for text in (self.clip_l, self.clip_g, self.t5):
            if text is not None:
                check_text(text)

    def of(self, encoder: EncoderName) -> str:
        """The text that one encoder reads."""
        own = {"clip_l": self.clip_l, "clip_g": self.clip_g, "t5": self.t5}[encoder]
        return self.text if own is None else own


PromptLike = str | Prompt | Mapping[str, str]


def as_prompts(prompts: PromptLike | Sequence[PromptLike]) -> tuple[Prompt, ...]:
    """One prompt or several, in any of their forms, as a batch.

    Raises:
        ValueError: there is none, or one is neither a text, nor a `Prompt`, nor a mapping with its fields.
    """
    several = [prompts] if isinstance(prompts, str | Prompt | Mapping) else list(prompts)
    if not several:
        raise ValueError("expected at least one prompt, got none; the empty text is a prompt")
    return tuple(_as_prompt(prompt) for prompt in several)


def _as_prompt(prompt: PromptLike) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, Mapping):
        unknown = set(prompt) - set(Prompt.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"a prompt has text, clip_l, clip_g and t5, not {', '.join(sorted(map(str, unknown)))}"
            )
        return Prompt(**prompt)
    return Prompt(prompt)
