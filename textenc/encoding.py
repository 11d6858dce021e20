"""What encoding a batch of prompts gives: the tensors, which token is where, and what was not read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .prompt import EncoderName, Prompt
from .tokenizer import Kind, Span

FORMAT = "textenc.Encoding 1"  # of saved encodings; the number goes up when old readers would go wrong


class ContextToken(NamedTuple):
    """A token of a prompt and its place in the context.

    A position within CLIP's window holds two, one of CLIP-L and one of CLIP-G, side by side in the
    features. A position without any holds zeros, in place of an encoder that is missing.
    """

    encoder: EncoderName
    position: int  # index into context[b]
    id: int
    piece: str  # as the vocabulary spells it
    kind: Kind  # "start" | "text" | "end" | "pad"
    span: Span | None  # the characters of the prompt that it stands for; None for what was added


@dataclass(frozen=True)
class Note:
    """Something that a user should know of how a prompt was read. `str(note)` is a sentence."""

    prompt: int  # index into the batch
    encoder: EncoderName
    message: str
    cut: str = ""  # the text that the encoder did not read

    def __str__(self) -> str:
        return f"prompt {self.prompt}, {self.encoder}: {self.message}"


@dataclass(frozen=True)
class Encoding:
    """A batch of encoded prompts, ready for the MM-DiT.

    `to_tensors` and `from_tensors` take it apart for a file and put it together again.
    """

    context: Tensor  # (B, M, 4096)
    pooled: Tensor  # (B, 2048)
    prompts: tuple[Prompt, ...]  # B of them
    tokens: tuple[tuple[ContextToken, ...], ...]  # B of them
    notes: tuple[Note, ...]
    policy: str  # the name of the prompt policy

    def __repr__(self) -> str:
        shapes = f"context {tuple(self.context.shape)}, pooled {tuple(self.pooled.shape)}"
        return f"Encoding({shapes}, {', '.join(repr(prompt.text) for prompt in self.prompts)})"

    def __len__(self) -> int:
        """The number of prompts, B."""
        return len(self.prompts)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Encoding":
        """The same encoding on another device or in another dtype; None keeps what it has."""
        context, pooled = (tensor.to(device=device, dtype=dtype) for tensor in (self.context, self.pooled))
        return replace(self, context=context, pooled=pooled)

    def select(self, index: int) -> "Encoding":
        """One prompt of the batch, as a batch of one.

        Raises:
            IndexError: there is no prompt of that index.
        """
        index = range(len(self))[index]
        return Encoding(
            context=self.context[index : index + 1],
            pooled=self.pooled[index : index + 1],
            prompts=(self.prompts[index],),
            tokens=(self.tokens[index],),
            notes=tuple(replace(note, prompt=0) for note in self.notes if note.prompt == index),
            policy=self.policy,
        )

    @staticmethod
    def cat(encodings: Sequence["Encoding"]) -> "Encoding":
        """Join encodings to one batch.

        Raises:
            ValueError: there are none, they differ in the length of their contexts, or in their policies.
        """
        if not encodings:
            raise ValueError("expected at least one encoding, got none")
        lengths = {encoding.context.shape[1] for encoding in encodings}
        policies = {encoding.policy for encoding in encodings}
        if len(lengths) > 1 or len(policies) > 1:
            raise ValueError(
                f"encodings of {sorted(lengths)} tokens under {sorted(policies)} make no batch: "
                "encode their prompts together, or run the model on them one by one"
            )
        firsts = [sum(len(encoding) for encoding in encodings[:n]) for n in range(len(encodings))]
        return Encoding(
            context=torch.cat([encoding.context for encoding in encodings]),
            pooled=torch.cat([encoding.pooled for encoding in encodings]),
            prompts=tuple(prompt for encoding in encodings for prompt in encoding.prompts),
            tokens=tuple(tokens for encoding in encodings for tokens in encoding.tokens),
            notes=tuple(
                replace(note, prompt=first + note.prompt)
                for first, encoding in zip(firsts, encodings, strict=True)
                for note in encoding.notes
            ),
            policy=encodings[0].policy,
        )

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Take the encoding apart into named tensors and text, as a safetensors file holds them.

        Returns:
            The tensors "context" and "pooled", contiguous, and the metadata: strings by name.
        """
        described = {
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "tokens": self.tokens,
            "notes": [asdict(note) for note in self.notes],
            "policy": self.policy,
        }
        tensors = {"context": self.context.contiguous(), "pooled": self.pooled.contiguous()}
        return tensors, {"format": FORMAT, "encoding": json.dumps(described)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> "Encoding":
        """Put together what `to_tensors` took apart.

        Raises:
            ValueError: these are no saved encoding, or one of another version.
        """
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"expected a saved encoding ({FORMAT}), got the format {metadata.get('format')!r}"
            )
        try:
            described = json.loads(metadata["encoding"])
            context, pooled = tensors["context"], tensors["pooled"]
            prompts = tuple(Prompt(**prompt) for prompt in described["prompts"])
            tokens = tuple(tuple(_token(*fields) for fields in of_one) for of_one in described["tokens"])
            notes = tuple(Note(**note) for note in described["notes"])
            policy = described["policy"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a saved encoding is damaged: {error!r}") from error
        if not len(context) == len(pooled) == len(prompts) == len(tokens):
            raise ValueError(
                f"a saved encoding is damaged: {len(context)} contexts, {len(pooled)} pooled vectors, "
                f"{len(prompts)} prompts and the tokens of {len(tokens)}"
            )
        return cls(context, pooled, prompts, tokens, notes, policy)


def _token(
    encoder: EncoderName, position: int, id: int, piece: str, kind: Kind, span: list[int] | None
) -> ContextToken:
    """A token as JSON has it, whose span came back as a list."""
    return ContextToken(encoder, position, id, piece, kind, None if span is None else (span[0], span[1]))
