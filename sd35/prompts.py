"""Prompts as settings: one or several, a text or one for each encoder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .errors import SettingsError
from .kinds import Kind

if TYPE_CHECKING:
    from textenc import Prompt


@dataclass(frozen=True)
class Prompts(Kind):
    """One prompt or several; `several=False` keeps the only one."""

    argument: ClassVar[Mapping[str, Any]] = {"metavar": "PROMPT"}

    several: bool = True

    def check(self, name: str, value: Any) -> "tuple[Prompt, ...] | Prompt":
        """See `Kind`."""
        from textenc.prompt import as_prompts

        try:
            prompts = as_prompts(value)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{name}: {error}") from error
        if self.several:
            return prompts
        if len(prompts) != 1:
            raise SettingsError(f"{name} must be one prompt, got {len(prompts)}")
        return prompts[0]

    def plain(self, value: Any) -> Any:
        """See `Kind`: a text, or the fields that are set where encoders have texts of their own."""
        return [_plain(one) for one in value] if self.several else _plain(value)


def no_prompt() -> "Prompt":
    """The empty text."""
    from textenc import Prompt

    return Prompt()


def policies() -> tuple[str, ...]:
    """The names of the ways to read prompts."""
    import textenc

    return tuple(textenc.POLICIES)


def _plain(prompt: "Prompt") -> str | dict[str, str]:
    own = {name: text for name, text in asdict(prompt).items() if name != "text" and text is not None}
    return {"text": prompt.text, **own} if own else prompt.text
