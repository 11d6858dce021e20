"""The layer that MM-DiT repeats: two streams of tokens with one attention between them.

SD3 paper (Esser et al. 2024, arXiv:2403.03206), section 4 and figure 2b.

Shapes, here and in the whole package:

    B  batch            N  image tokens      D  width of the model, H * K
    M  context tokens   H  attention heads   K  width of a head, 64
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .in_cache import by_tokens, gelu


class AdaLN(nn.Sequential):
    """Turn the conditioning vector into `n` modulation vectors (adaLN-Zero, arXiv:2212.09748).

    A `Sequential`, so that the weight keeps its official key, `adaLN_modulation.1.weight`.
    """

    def __init__(self, dim: int, n: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, n * dim))
        self.n = n

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """(B, D) to `n` times (B, 1, D), ready to broadcast over tokens."""
        return super().forward(input)[:, None].chunk(self.n, dim=-1)


class Norm(nn.Module):
    """LayerNorm without weights: in this model the scale and shift come from the conditioning."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to the same shape, mean 0 and variance 1 over D."""
        # Contiguous, or all that follows keeps the strides of `x`. Where tokens are a transposed view, torch
        # normalises ten times slower, each linear copies, and torch 2.13 compiles a norm that two
        # modulations read (as in a dual block) into one that gives NaN in bfloat16 on CPUs with AMX.
        return F.layer_norm(x.contiguous(), x.shape[-1:], eps=1e-6)


class QKNorm(nn.Module):
    """RMS norm of each head's query or key, against attention logits that grow (paper, section 5.3.2).

    The mean square is taken in float32 at least: the square of 256 already overflows float16, and
    the reference code, run in plain float16, answers such a head with zeros.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))

    def forward(self, heads: Tensor) -> Tensor:
        """(B, H, L, K) to the same shape."""
        return by_tokens(self.norm, heads)

    def norm(self, heads: Tensor) -> Tensor:
        """(B, H, L, K) to the same shape, all tokens at once."""
        tokens = heads.transpose(1, 2)  # (B, L, H, K), as `qkv` wrote them: half the time of the other order
        return F.rms_norm(tokens, tokens.shape[-1:], self.weight, eps=1e-6).transpose(1, 2)


class Attention(nn.Module):
    """What one stream does around an attention: `qkv` and per-head norms before it, `proj` after.

    SD3-medium has no norms: there `ln_q` and `ln_k` pass their input on, as `v` does in every model, so
    that the query, key and value of every model are the output of a module with the same path.
    """

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool, out: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.ln_q = QKNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.ln_k = QKNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.v = nn.Identity()
        if out:
            self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L, D) to q, k, v, each (B, H, L, K)."""
        q, k, v = rearrange(self.qkv(x), "b l (three h k) -> three b h l k", three=3, h=self.num_heads)
        return self.ln_q(q), self.ln_k(k), self.v(v)


class DotProductAttention(nn.Module):
    """`attention` as a module, so that each one of a model can be watched, or another put in its place."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Three times (B, H, L, K) to (B, L, D)."""
        return attention(q, k, v)


class SelfAttention(Attention):
    """An attention of one stream with itself alone: `attn2` of the dual blocks, and ControlNets."""

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__(dim, num_heads, qk_norm=qk_norm)
        self.attention = DotProductAttention()

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to the same shape."""
        return self.proj(self.attention(*self.heads(x)))


class Mlp(nn.Module):
    """Two linear layers, four times wider between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to the same shape."""
        return self.fc2(gelu(self.fc1(x)))


class Stream(nn.Module):
    """The weights of one stream of a block; `JointBlock.forward` is where they are used.

    `attended` passes on the tokens between the block's two halves, after attention and before the MLP.
    """

    def __init__(
        self, dim: int, num_heads: int, *, qk_norm: bool, dual: bool = False, read_only: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = Norm()
        self.attn = Attention(dim, num_heads, qk_norm=qk_norm, out=not read_only)
        if dual:
            self.attn2 = SelfAttention(dim, num_heads, qk_norm=qk_norm)
        if not read_only:
            self.attended = nn.Identity()
            self.norm2 = Norm()
            self.mlp = Mlp(dim)
        self.adaLN_modulation = AdaLN(dim, 2 if read_only else 9 if dual else 6)


class JointBlock(nn.Module):
    """One layer: image and context tokens attend to each other, then part (paper, figure 2b).

    Each stream has weights of its own, `x_block` and `context_block`. They meet in a single
    attention over the sequence [context, x], in that order:

        x       ─ norm, modulate ─ qkv ─┐             ┌─ proj ─ gate ─ (+) ─ mlp ─ gate ─ (+) ─▶
                                        ├─ attention ─┤
        context ─ norm, modulate ─ qkv ─┘             └─ proj ─ gate ─ (+) ─ mlp ─ gate ─ (+) ─▶

    Two layers differ. With `dual` (blocks 0-12 of SD3.5-medium) the image tokens also attend
    to themselves alone, through `x_block.attn2`. In the `last` block of a model the context is
    read but no longer written: `context_block` has no `proj` and no `mlp`.
    """

    def __init__(
        self, dim: int, num_heads: int, *, qk_norm: bool, dual: bool = False, last: bool = False
    ) -> None:
        super().__init__()
        self.dual, self.last = dual, last
        self.context_block = Stream(dim, num_heads, qk_norm=qk_norm, read_only=last)
        self.x_block = Stream(dim, num_heads, qk_norm=qk_norm, dual=dual)
        self.attention = DotProductAttention()  # the one place where text and image meet

    def forward(self, x: Tensor, context: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the layer.

        Args:
            x: image tokens, (B, N, D).
            context: context tokens, (B, M, D).
            c: embedding of the noise level and the pooled text, (B, D).

        Returns:
            The new `x`, (B, N, D), and the new `context`, (B, M, D), or None from the last block.
        """
        image, text = self.x_block, self.context_block
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, *modulation2 = image.adaLN_modulation(c)
        context_shift, context_scale, *context_modulation = text.adaLN_modulation(c)

        x_normed = image.norm1(x)
        qkv = image.attn.heads(modulate(x_normed, shift, scale))
        context_qkv = text.attn.heads(modulate(text.norm1(context), context_shift, context_scale))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(context_qkv, qkv, strict=True))  # (B, H, M + N, K)
        context_out, x_out = part(self.attention(q, k, v), context.shape[1])

        x = add_gated(x, gate, image.attn.proj(x_out))
        if self.dual:
            shift2, scale2, gate2 = modulation2
            x = add_gated(x, gate2, image.attn2(modulate(x_normed, shift2, scale2)))
        x = image.attended(x)
        x = add_gated(x, gate_mlp, image.mlp(modulate(image.norm2(x), shift_mlp, scale_mlp)))
        if self.last:
            return x, None

        gate, shift_mlp, scale_mlp, gate_mlp = context_modulation
        context = text.attended(add_gated(context, gate, text.attn.proj(context_out)))
        context = add_gated(context, gate_mlp, text.mlp(modulate(text.norm2(context), shift_mlp, scale_mlp)))
        return x, context


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """X · (1 + scale) + shift, channel by channel; the `1 +` makes a zero modulation the identity."""
    return torch.addcmul(shift, x, 1 + scale)


def add_gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """X + gate · branch, channel by channel: what a branch gives, let into the residual stream."""
    return torch.addcmul(x, gate, branch)


def part(joined: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, M + N, D) of [context, x] to those of each, (B, M, D) and (B, N, D)."""
    # Contiguous: given a slice, torch multiplies sample by sample, which takes up to 1.6 times as long.
    return joined[:, :length].contiguous(), joined[:, length:].contiguous()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √K) v, heads merged: three (B, H, L, K) to one (B, L, D).

    There is no mask. Padding tokens of the context take part, as in the reference code. Forward-mode
    derivatives (`torch.func.jvp`) exist for torch's plain kernel alone: run them under
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    """
    if q.device.type == "cpu":  # where each head by itself takes a tenth less time than heads side by side
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h l k -> b l (h k)")
