"""A LoRA, or one of its relatives, as it is applied: which modules change, by what, and how much."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

KINDS: Mapping[str, str] = {
    "lora": "LoRA, W + s · up · down (arXiv:2106.09685)",
    "loha": "LoHa, W + s · (w1_a w1_b) ∘ (w2_a w2_b) (arXiv:2108.06098)",
    "lokr": "LoKr, W + s · w1 ⊗ w2 (arXiv:2309.14859)",
    "full": "full difference, W + diff",
    "bias": "difference of a bias alone",
}


@dataclass(frozen=True)
class Update:
    """What a file does to one module, or to the rows of its q, k or v.

    The tensors are the file's own, in its dtype and order of rows; `rows` and `swap` say where they go.
    """

    part: str  # mmdit, clip_l, clip_g or t5
    path: str  # of the module: an official key without .weight
    kind: str  # a key of KINDS
    tensors: Mapping[str, Tensor]  # role (a value of SUFFIXES) to tensor
    keys: tuple[str, ...]  # that it was read from
    rows: tuple[int, int]  # first and one past the last of the module's output
    swap: bool = False  # the two halves of the rows change places
    rank: int | None = None
    alpha: float | None = None
    scale: float = 1.0  # alpha / rank, or as the kind has it; the caller's scale comes on top
    axis: int | None = None  # DoRA: 0 where the magnitude has one number a row, 1 a column
    outside: bool = False  # DoRA: the caller's scale acts after the norm (LyCORIS), not inside it

    @property
    def label(self) -> str:
        """The kind in a word: "LoRA", "DoRA", "DoRA of LoKr", ..."""
        word = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}.get(self.kind, self.kind)
        if self.axis is None:
            return word
        return "DoRA" if self.kind == "lora" else f"DoRA of {word}"


@dataclass(frozen=True)
class Adapter:
    """A file that was read whole and fits the model that it was read for."""

    source: str
    digest: str  # SHA-256 of the file, in hexadecimal
    dialect: str  # which tables its keys come from
    updates: tuple[Update, ...]
    passed_over: Mapping[str, str] = field(default_factory=dict)  # key to why it changes nothing here
    notes: tuple[str, ...] = ()


def matrix(kind: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor | None:
    """The product of an update's factors, before any scale, as (rows, everything else).

    Args:
        kind: a key of KINDS.
        tensors: role to tensor.
        dtype: to compute in.

    Returns:
        A matrix; None for a bias alone.
    """
    cast = {role: tensor.to(dtype) for role, tensor in tensors.items()}
    if kind == "lora":
        return cast["up"].flatten(1) @ cast["down"].flatten(1)
    if kind == "full":
        return cast["weight"].flatten(1) if cast["weight"].ndim > 1 else cast["weight"][:, None]
    if kind == "loha":
        return _factor(cast, "hada_w1", "hada_t1") * _factor(cast, "hada_w2", "hada_t2")
    if kind == "lokr":
        return torch.kron(_factor(cast, "lokr_w1", ""), _factor(cast, "lokr_w2", "lokr_t2"))
    return None


def _factor(tensors: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """One factor: whole, as a product of two, or with a Tucker core (r, r, kh, kw) between them."""
    if name in tensors:
        return tensors[name].flatten(1)
    first, second = tensors[f"{name}_a"], tensors[f"{name}_b"]
    if core in tensors:
        return torch.einsum("ij...,ip,jr->pr...", tensors[core], first, second).flatten(1)
    return first @ second.flatten(1)


def rank_of(kind: str, tensors: Mapping[str, Tensor]) -> int | None:
    """The rank of an update, by which alpha is divided.

    LoKr with two whole factors has no rank, and its alpha says nothing (LyCORIS writes 1 or 10000,
    ai-toolkit 9999999999).
    """
    return {
        "lora": lambda: len(tensors["down"]),
        "loha": lambda: len(tensors["hada_w1_b"]),
        "lokr": lambda: next(
            (len(tensors[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors), None
        ),
    }.get(kind, lambda: None)()
