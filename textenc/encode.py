"""Prompts to what the MM-DiT reads: `context` and `pooled`.

SD3 paper (arXiv:2403.03206), figure 2 and appendix B.2. With L tokens in a CLIP window and M - L of T5:

    context (B, M, 4096)  =  [ CLIP-L 768 | CLIP-G 1280 | zeros 2048 ]   L tokens, then
                             [               T5 4096                 ]   M - L tokens
    pooled  (B, 2048)     =  [ CLIP-L 768 | CLIP-G 1280 ]

Encoders are loaded, used and freed one after the other where the caller gives functions that load them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import CLIP, CLIPOutput
from .encoding import ContextToken, Encoding, Note
from .prompt import EncoderName, Prompt, PromptLike, as_prompts
from .t5 import T5
from .tokenizer import CLIP_LENGTH, CLIPTokenizer, PromptPolicy, T5Tokenizer, Tokens, prompt_policy

Missing = Literal["zeros", "drop"]
SHOWN = 60  # characters of a cut text in a note's message; `Note.cut` has them all

TokensByEncoder = dict[EncoderName, list[Tokens]]


@dataclass(frozen=True)
class Widths:
    """Features that each encoder has, or would have if it were there; SD3's by default."""

    clip_l: int = 768
    clip_g: int = 1280
    context: int = 4096  # T5's


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """Up to three text encoders with their tokenizers.

    An encoder is a module, or a function without arguments that loads one: such a module is used for one
    call of `encode` and freed before the next is loaded, so that only one is in memory at a time. Modules
    may live on different devices and in different dtypes; nothing is moved but ids and results.

    Raises:
        ValueError: an encoder has no tokenizer, or there is no encoder at all.
    """

    clip_l: CLIP | Callable[[], CLIP] | None = None
    clip_g: CLIP | Callable[[], CLIP] | None = None
    t5: T5 | Callable[[], T5] | None = None
    tokenizer_l: CLIPTokenizer | None = None  # pads with the end token
    tokenizer_g: CLIPTokenizer | None = None  # pads with id 0
    tokenizer_t5: T5Tokenizer | None = None
    widths: Widths = Widths()  # of the encoders that are missing

    def __post_init__(self) -> None:
        named = {"clip_l": self.tokenizer_l, "clip_g": self.tokenizer_g, "t5": self.tokenizer_t5}
        bare = [
            name for name, tokenizer in named.items() if tokenizer is None and getattr(self, name) is not None
        ]
        if bare:
            raise ValueError(f"{', '.join(bare)} came without its tokenizer")
        if self.clip_l is None and self.clip_g is None and self.t5 is None:
            raise ValueError("a text encoder needs at least one of clip_l, clip_g and t5")

    def tokenize(
        self, prompts: PromptLike | Sequence[PromptLike], *, policy: str | PromptPolicy = "reference"
    ) -> TokensByEncoder:
        """Tokenize prompts for each encoder that is there, without loading or running one.

        T5 tokens are padded to the longest of the call, so that the ids of an encoder have one length.

        Args:
            prompts: as for `encode`.
            policy: as for `encode`.

        Raises:
            ValueError: a prompt is no text, or the policy is unknown.
        """
        batch, policy = as_prompts(prompts), prompt_policy(policy)
        tokens: TokensByEncoder = {}
        if self.clip_l is not None and self.tokenizer_l is not None:
            tokens["clip_l"] = [self.tokenizer_l(prompt.of("clip_l"), policy) for prompt in batch]
        if self.clip_g is not None and self.tokenizer_g is not None:
            tokens["clip_g"] = [self.tokenizer_g(prompt.of("clip_g"), policy) for prompt in batch]
        if self.t5 is not None and self.tokenizer_t5 is not None:
            read = [self.tokenizer_t5(prompt.of("t5"), policy) for prompt in batch]
            longest = max(len(one.tokens) for one in read)
            tokens["t5"] = [self.tokenizer_t5.padded(one, longest) for one in read]
        return tokens

    def encode(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        policy: str | PromptPolicy = "reference",
        missing: Missing = "zeros",
    ) -> Encoding:
        """Encode a batch of prompts, negative ones included: they are prompts like any other.

        What did not fit is told in `Encoding.notes`. T5's pads are read like text; so where prompts of
        different lengths share a call under the policy "reference" and one has more than 77 tokens, the
        others are padded to its length, which changes them, and a note says so. To keep each prompt as it
        is alone, encode one at a time.

        Args:
            prompts: one or several; each a text for all encoders or a `Prompt` (or a mapping with its
                fields) with other texts for some of them. The empty text is fine.
            policy: how prompts are read, by the name of a `PromptPolicy` in `tokenizer.POLICIES`.
            missing: what stands for an encoder that is not there. "zeros", as in diffusers: as many zero
                tokens as the policy pads T5 to, and zero features for CLIP; the paper's training dropped
                encoders so. "drop", as in ComfyUI: the context ends with CLIP's tokens, or begins with T5's
                where both CLIPs are missing.

        Raises:
            ValueError: no prompts, a prompt is no text, an unknown policy, or a tokenizer that does not
                belong to its encoder.
        """
        batch, policy = as_prompts(prompts), prompt_policy(policy)
        (encoding,) = self._encode([batch], policy, missing)
        return encoding

    def encode_each(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        *,
        policy: str | PromptPolicy = "reference",
        missing: Missing = "zeros",
    ) -> list[Encoding]:
        """Encode each prompt by itself, as a call of `encode` for each, to the last bit.

        An encoder that has to be loaded is loaded once for all of them. Arguments and errors as in `encode`.
        """
        policy = prompt_policy(policy)
        return self._encode([[prompt] for prompt in as_prompts(prompts)], policy, missing)

    def _encode(
        self, batches: Sequence[Sequence[Prompt]], policy: PromptPolicy, missing: Missing
    ) -> list[Encoding]:
        """Encode batches, each encoder running all of them before the next runs any."""
        if missing not in ("zeros", "drop"):
            raise ValueError(f"missing must be 'zeros' or 'drop', got {missing!r}")
        tokens = [self.tokenize(batch, policy=policy) for batch in batches]
        encoders = {"clip_l": self.clip_l, "clip_g": self.clip_g, "t5": self.t5}
        outputs: dict[str, list[Any]] = {
            name: [None] * len(batches)
            if encoder is None
            else _run(encoder, [of_batch[name] for of_batch in tokens])  # pyright: ignore[reportArgumentType]
            for name, encoder in encoders.items()
        }
        return [
            self._join(
                batch, of_batch, {name: each[index] for name, each in outputs.items()}, policy, missing
            )
            for index, (batch, of_batch) in enumerate(zip(batches, tokens, strict=True))
        ]

    def _join(
        self,
        batch: Sequence[Prompt],
        tokens: TokensByEncoder,
        outputs: Mapping[str, Any],
        policy: PromptPolicy,
        missing: Missing,
    ) -> Encoding:
        """The encoding of a batch from what each encoder gave, None for one that is not there."""
        drop_clip = missing == "drop" and outputs["clip_l"] is None and outputs["clip_g"] is None
        context, pooled = self._assemble(**outputs, t5_length=policy.t5_min if missing == "zeros" else 0)
        if drop_clip:
            context = context[:, CLIP_LENGTH:]
        first_t5 = 0 if drop_clip else CLIP_LENGTH
        records = tuple(_records(tokens, index, first_t5) for index in range(len(batch)))
        notes = tuple(_notes(batch, tokens, policy))
        return Encoding(
            context, pooled, prompts=tuple(batch), tokens=records, notes=notes, policy=policy.name
        )

    def _assemble(
        self, clip_l: CLIPOutput | None, clip_g: CLIPOutput | None, t5: Tensor | None, *, t5_length: int
    ) -> tuple[Tensor, Tensor]:
        """`assemble` with zeros for what is None."""
        parts = [t5, *(clip.pooled for clip in (clip_l, clip_g) if clip is not None)]
        present = next(part for part in parts if part is not None)  # for its batch, device and dtype
        return assemble(
            clip_l or _zeros(present, self.widths.clip_l),
            clip_g or _zeros(present, self.widths.clip_g),
            present.new_zeros(len(present), t5_length, self.widths.context) if t5 is None else t5,
        )


def assemble(clip_l: CLIPOutput, clip_g: CLIPOutput, t5: Tensor) -> tuple[Tensor, Tensor]:
    """Join what the encoders gave to (context, pooled), as the figure at the top of this file shows.

    Args:
        clip_l: of CLIP-L: penultimate (B, L, D₁) and pooled (B, D₁).
        clip_g: of CLIP-G: penultimate (B, L, D₂) and pooled (B, D₂).
        t5: (B, K, D) with D ≥ D₁ + D₂; K may be 0.

    Returns:
        context (B, L + K, D) and pooled (B, D₁ + D₂), on the device of `t5`, and in the dtype that holds
        all three without loss.

    Raises:
        ValueError: the CLIP features together are wider than T5's.
    """
    device = t5.device
    clip = torch.cat(
        [clip_l.penultimate.to(device), clip_g.penultimate.to(device)], dim=-1
    )  # (B, L, D1 + D2)
    room = t5.shape[-1] - clip.shape[-1]
    if room < 0:
        raise ValueError(
            f"CLIP's {clip.shape[-1]} features do not fit into a context of width {t5.shape[-1]}"
        )
    context = torch.cat([F.pad(clip, (0, room)), t5], dim=1)  # (B, L + K, D)
    return context, torch.cat([clip_l.pooled.to(device), clip_g.pooled.to(device)], dim=-1)


def _run(encoder: nn.Module | Callable[[], nn.Module], batches: Sequence[list[Tokens]]) -> list[Any]:
    """Run one encoder on each batch; where it had to be loaded, the last reference to it ends here."""
    module = encoder if isinstance(encoder, nn.Module) else encoder()
    # A quantised module may have buffers alone.
    device = next(chain(module.parameters(), module.buffers())).device
    return [module(torch.tensor([one.ids for one in tokens], device=device)) for tokens in batches]


def _zeros(like: Tensor, width: int) -> CLIPOutput:
    """What stands for a CLIP that is not there."""
    tokens = like.new_zeros(len(like), CLIP_LENGTH, width)
    return CLIPOutput(tokens, tokens, like.new_zeros(len(like), width))


def _records(tokens: TokensByEncoder, index: int, first_t5: int) -> tuple[ContextToken, ...]:
    """The tokens of prompt `index` at their positions in the context."""
    starts = {name: first_t5 if name == "t5" else 0 for name in tokens}
    return tuple(
        ContextToken(name, position, *token)
        for name in tokens
        for position, token in enumerate(tokens[name][index].tokens, start=starts[name])
    )


def _notes(batch: Sequence[Prompt], tokens: TokensByEncoder, policy: PromptPolicy) -> Iterator[Note]:
    """What each encoder left out, and which prompts the batch made longer."""
    for name, of_batch in tokens.items():
        for index, (prompt, one) in enumerate(zip(batch, of_batch, strict=True)):
            own = max(policy.t5_min, sum(token.kind != "pad" for token in one.tokens))
            if one.cut is not None:
                start, end = one.cut
                cut = prompt.of(name)[start:end]
                shown = cut if len(cut) <= SHOWN else cut[:SHOWN] + "…"
                message = f"not read, no room left, from character {start} on ({end - start}): {shown!r}"
                yield Note(index, name, message, cut)
            if name == "t5" and len(one.tokens) > own:
                yield Note(index, name, f"padded from {own} to {len(one.tokens)} tokens, the batch's longest")
