"""The encoder half of T5 v1.1, as SD3 uses it (T5-XXL).

T5 (Raffel et al. 2020, arXiv:1910.10683), section 2.1; gated GELU from Shazeer 2020, arXiv:2002.05202.

Shapes: B batch, L tokens, D width (4096), H heads (64), K head width (64), F feed-forward width (10240).

Half precision. The residual stream of T5-XXL passes 65504, float16's largest number, and so does the
product in its feed-forward layers. So the stream is kept in float32 whatever the weights are, and with
float16 weights the product is float32 too, and enters `wo` in float16 divided by a power of two, a token's
own, that brings its largest value below 1. Nothing is clamped. In float32 and float64 all of it is a no-op,
and in bfloat16 it costs little and keeps the sum of 48 branches exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .shapes import count_layers, shape_of
from .tokens import check_ids

MAX_DISTANCE = 128  # of T5's relative positions: from here on all share the last bucket
EPS = 1e-6  # of every RMS norm


@dataclass(frozen=True)
class T5Config:
    """The sizes of one encoder. `from_shapes` reads them off a checkpoint."""

    vocab_size: int  # 32128: the tokenizer's 32100, rounded up to a multiple of 128
    dim: int  # 4096
    depth: int  # 24
    num_heads: int  # 64
    head_dim: int  # 64
    mlp_dim: int  # 10240
    buckets: int  # 32, of relative positions

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> "T5Config":
        """Read the sizes off a checkpoint.

        Args:
            shapes: tensor name, as in the official file, to shape. The token table may be called
                `shared.weight`, `encoder.embed_tokens.weight`, or both.

        Raises:
            ValueError: a tensor that the sizes are read from is missing or has another rank, or q does not
                divide into the heads.
        """
        alias = "encoder.embed_tokens.weight"
        table = alias if alias in shapes and "shared.weight" not in shapes else "shared.weight"
        vocab_size, dim = shape_of(shapes, table, rank=2)
        attention = "encoder.block.0.layer.0.SelfAttention"
        buckets, num_heads = shape_of(shapes, f"{attention}.relative_attention_bias.weight", rank=2)
        inner, _ = shape_of(shapes, f"{attention}.q.weight", rank=2)
        mlp_dim, _ = shape_of(shapes, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", rank=2)
        if num_heads < 1 or inner % num_heads:
            raise ValueError(f"T5: a q of width {inner} does not divide into {num_heads} heads")
        return cls(
            vocab_size=vocab_size,
            dim=dim,
            depth=count_layers(shapes, "encoder.block."),
            num_heads=num_heads,
            head_dim=inner // num_heads,
            mlp_dim=mlp_dim,
            buckets=buckets,
        )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · weight: no mean is subtracted and there is no bias.

    The statistic is taken in float32 at least, and the result has the dtype of the weight.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPS)
        return x.to(self.weight.dtype) * self.weight


class SelfAttention(nn.Module):
    """Attention over all tokens, pads included, with a learned bias per distance and no 1/√K."""

    def __init__(self, config: T5Config, *, has_bias_table: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, inner, bias=False)
        self.k = nn.Linear(config.dim, inner, bias=False)
        self.v = nn.Linear(config.dim, inner, bias=False)
        self.o = nn.Linear(inner, config.dim, bias=False)
        if has_bias_table:  # of block 0 alone; every block uses its values
            self.relative_attention_bias = nn.Embedding(config.buckets, config.num_heads)

    def position_bias(self, length: int) -> Tensor:
        """What is added to the attention's logits, (1, H, L, L), by query and key."""
        table = self.relative_attention_bias.weight  # (buckets, H)
        position = torch.arange(length, device=table.device)
        buckets = relative_bucket(position[None, :] - position[:, None], num_buckets=len(table))
        # Contiguous: read as it is gathered, with the heads last, it doubles the time of every attention.
        return rearrange(table[buckets], "query key h -> 1 h query key").contiguous()

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, L, D) and (1, H, L, L) to (B, L, D)."""
        q, k, v = (
            rearrange(p(x), "b l (h k) -> b h l k", h=self.num_heads) for p in (self.q, self.k, self.v)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)  # (B, H, L, K)
        return self.o(rearrange(out, "b h l k -> b l (h k)"))


class GatedMlp(nn.Module):
    """wo(gelu(wi_0 x) · wi_1 x). The file calls it `DenseReluDense`, which it was in the first T5."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.wi_1 = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.wo = nn.Linear(config.mlp_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        gate, value = F.gelu(self.wi_0(x), approximate="tanh"), self.wi_1(x)  # (B, L, F)
        if x.dtype != torch.float16:
            return self.wo(gate * value)
        product = gate.float() * value.float()  # see the module's note: this and the next result overflow
        _, exponent = torch.frexp(product.abs().amax(dim=-1, keepdim=True))  # (B, L, 1)
        return torch.ldexp(self.wo(torch.ldexp(product, -exponent).half()).float(), exponent)


class AttentionBranch(nn.Module):
    """`layer.0` of a block: norm, attention."""

    def __init__(self, config: T5Config, *, has_bias_table: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_bias_table=has_bias_table)
        self.layer_norm = RMSNorm(config.dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D), to be added to x."""
        return self.SelfAttention(self.layer_norm(x), bias)


class MlpBranch(nn.Module):
    """`layer.1` of a block: norm, gated MLP."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = GatedMlp(config)
        self.layer_norm = RMSNorm(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D), to be added to x."""
        return self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    """Attention, then the gated MLP, each added to the stream."""

    def __init__(self, config: T5Config, *, has_bias_table: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [AttentionBranch(config, has_bias_table=has_bias_table), MlpBranch(config)]
        )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D), float32 at least."""
        attention, mlp = self.layer
        x = x + attention(x, bias)
        return x + mlp(x)


class Encoder(nn.Module):
    """The blocks and the last norm, under the file's name `encoder`."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, has_bias_table=i == 0) for i in range(config.depth))
        self.final_layer_norm = RMSNorm(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embedded tokens (B, L, D) to (B, L, D)."""
        first = cast(AttentionBranch, cast(Block, self.block[0]).layer[0])
        bias = first.SelfAttention.position_bias(x.shape[1])  # (1, H, L, L), for all blocks
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class T5(nn.Module):
    """A T5 encoder whose attribute paths are the keys of `t5xxl_fp16.safetensors`.

    The token table is one parameter, `shared.weight`. Files hold it under that name, as
    `encoder.embed_tokens.weight`, or under both; `load_state_dict` takes any of the three.
    A new module is initialised for training as T5 was; `initialize` does so again, from a generator.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.dim)
        self.encoder = Encoder(config)
        self.register_load_state_dict_pre_hook(_fold_token_table)
        self.initialize()

    def forward(self, ids: Tensor) -> Tensor:
        """Encode token ids; pads are attended like any token, as in both reference implementations.

        Args:
            ids: (B, L) integers of any length.

        Returns:
            The final-normed tokens, (B, L, D), in the dtype of the weights.

        Raises:
            ValueError: not integers, not (B, L), or beyond the vocabulary.
        """
        check_ids(ids, vocab_size=self.config.vocab_size)
        return self.encoder(self.shared(ids))

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, as for training from scratch (T5's own: normal, by fan-in).

        `q` is smaller by √K, which stands in for the scale that the attention does not have.

        Args:
            generator: where the numbers come from; None takes torch's global generator.
        """
        config = self.config
        wide, inner = config.dim**-0.5, config.num_heads * config.head_dim
        stds = {"q": (config.dim * config.head_dim) ** -0.5, "k": wide, "v": wide, "o": inner**-0.5}
        stds |= {"wi_0": wide, "wi_1": wide, "wo": config.mlp_dim**-0.5}
        stds |= {"shared": 1.0, "relative_attention_bias": wide}
        for path, module in self.named_modules():
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=stds[path.rpartition(".")[2]], generator=generator)


def relative_bucket(distance: Tensor, *, num_buckets: int) -> Tensor:
    """Sort distances (key - query) into buckets: exact near by, logarithmic up to 128, one beyond.

    With n = num_buckets / 2 buckets for each sign, those of keys after the query coming second:

        bucket(d) = d                                                   d < n/2
                    min(n - 1, n/2 + ⌊ln(d / (n/2)) / ln(128 / (n/2)) · n/2⌋)  otherwise

    Args:
        distance: integers of any shape.
        num_buckets: 32 in every released T5.

    Returns:
        Bucket indices, int64, of the same shape.
    """
    per_sign = num_buckets // 2
    exact = per_sign // 2
    after, distance = (distance > 0).long() * per_sign, distance.abs()
    starts = torch.tensor(_bucket_starts(exact, per_sign - exact), device=distance.device)
    far = exact - 1 + torch.bucketize(distance, starts, right=True)
    return after + torch.where(distance < exact, distance, far)


def _bucket_starts(exact: int, count: int) -> list[int]:
    """The smallest distance in each logarithmic bucket: (d / exact)ᶜ >= (128 / exact)ⁱ, in integers.

    The references take float32 logarithms. At 16, 32 and 64 the formula is a whole number, and a logarithm
    that is one unit in the last place smaller, as another processor may have it, would fall into the bucket
    before; with integers all processors compute what the references do on those where they are right.
    """
    distances = range(exact, MAX_DISTANCE + 1)
    return [
        next(d for d in distances if d**count * exact**i >= exact**count * MAX_DISTANCE**i)
        for i in range(count)
    ]


def _fold_token_table(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Give the token table its one name before loading; where a file has both, they are equal."""
    alias = state.pop(f"{prefix}encoder.embed_tokens.weight", None)
    if alias is not None:
        state.setdefault(f"{prefix}shared.weight", alias)
