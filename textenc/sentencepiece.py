"""Reading spiece.model, the file of a sentencepiece tokenizer, without the library of that name.

The file is one protocol buffer, `ModelProto` of sentencepiece_model.proto. Of its fields these matter:

    ModelProto        1 pieces (repeated SentencePiece)   2 trainer_spec   3 normalizer_spec
    SentencePiece     1 piece      2 score (float)        3 type (1 normal, 2 unknown, 3 control, ...)
    TrainerSpec       3 model_type (1 unigram)            35 byte_fallback
    NormalizerSpec    2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import VocabularyError

UNIGRAM = 1
UNKNOWN, CONTROL = 2, 3  # types of a piece

Field = tuple[int, int | bytes]


@dataclass(frozen=True)
class SentencePieceModel:
    """A unigram vocabulary and the table that normalises text before it."""

    pieces: list[tuple[str, float]]  # with their log probabilities; the index is the id
    unk_id: int
    specials: list[str]  # pieces that no text becomes: <pad>, </s>, <unk>
    charsmap: bytes  # sentencepiece's compiled normalisation (nmt_nfkc for T5); empty for none


def read_sentencepiece(file: Path) -> SentencePieceModel:
    """Read a unigram spiece.model.

    Raises:
        VocabularyError: the file is unreadable, or its model is not of T5's kind (unigram, a space put
            before the text, runs of spaces collapsed, no fallback to bytes).
    """
    try:
        top = list(_fields(file.read_bytes()))
        pieces = [_piece(value) for number, value in top if number == 1 and isinstance(value, bytes)]
        trainer, normalizer = _message(top, 2), _message(top, 3)
    except (OSError, ValueError, struct.error) as error:
        raise VocabularyError(f"{file} is not a readable sentencepiece model: {error}") from error
    kinds = [kind for _, _, kind in pieces]
    if not pieces or UNKNOWN not in kinds:
        raise VocabularyError(
            f"{file} is not a sentencepiece model: it holds no pieces, or none for the unknown"
        )
    t5_like = trainer.get(3, UNIGRAM) == UNIGRAM and not trainer.get(35, 0)
    if not (t5_like and normalizer.get(3, 1) and normalizer.get(4, 1)):
        raise VocabularyError(f"{file} is a sentencepiece model of another kind than T5's")
    charsmap = normalizer.get(2, b"")
    return SentencePieceModel(
        pieces=[(piece, score) for piece, score, _ in pieces],
        unk_id=kinds.index(UNKNOWN),
        specials=[piece for piece, _, kind in pieces if kind in (UNKNOWN, CONTROL)],
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def _message(fields: list[Field], number: int) -> dict[int, int | bytes]:
    """The sub-message at `number`, by its own field numbers; empty where it is absent."""
    return {
        n: v for at, value in fields if at == number and isinstance(value, bytes) for n, v in _fields(value)
    }


def _piece(data: bytes) -> tuple[str, float, int]:
    """One SentencePiece: text, score, type."""
    values = dict(_fields(data))
    text, score, kind = values.get(1, b""), values.get(2, bytes(4)), values.get(3, 1)
    if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
        raise ValueError("a piece has fields of other types")
    return text.decode("utf-8"), struct.unpack("<f", score)[0], kind


def _fields(data: bytes) -> Iterator[Field]:
    """Split a protocol buffer message into (field number, value): an int, or the bytes of the rest."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"it ends within a field, at byte {position}")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length integer, seven bits to a byte, and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number longer than 64 bits at byte {position}")
