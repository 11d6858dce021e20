"""CLIP's text transformer: what CLIP-L and CLIP-G (OpenCLIP ViT-bigG) both are, in two sizes.

CLIP (Radford et al. 2021, arXiv:2103.00020), section 2.4. Stable Diffusion reads two things from it:
the tokens before the last layer, un-normed, and one vector for the whole prompt.

Shapes: B batch, L tokens, D width (768 in CLIP-L, 1280 in CLIP-G), H heads, K head width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .shapes import count_layers, shape_of
from .tokens import check_ids

HEAD_DIM = 64  # of every released CLIP; a file's shapes cannot tell the number of heads

Activation = Literal["quick_gelu", "gelu"]


class CLIPOutput(NamedTuple):
    """What a prompt becomes."""

    penultimate: Tensor  # (B, L, D), after layer depth - 1 of depth, without the final norm: the context
    last: Tensor  # (B, L, D), after all layers and the final norm
    pooled: Tensor  # (B, P), `last` at the end-of-text token, projected where the module has a projection


@dataclass(frozen=True)
class CLIPConfig:
    """The sizes of one encoder. `from_shapes` reads them off a checkpoint."""

    vocab_size: int  # 49408
    positions: int  # 77, the longest sequence
    dim: int  # 768 | 1280
    depth: int  # 12 | 32
    num_heads: int  # 12 | 20
    mlp_dim: int  # 3072 | 5120
    projection_dim: int | None  # None | 1280: CLIP-L's file holds no projection, CLIP-G's does
    activation: (
        Activation  # quick_gelu | gelu: OpenAI trained CLIP-L with the first, OpenCLIP G with the second
    )

    @classmethod
    def from_shapes(
        cls, shapes: Mapping[str, Sequence[int]], *, activation: Activation, num_heads: int | None = None
    ) -> "CLIPConfig":
        """Read the sizes off a checkpoint.

        Args:
            shapes: tensor name, as in the official file, to shape.
            activation: "quick_gelu" for CLIP-L, "gelu" for CLIP-G. No shape tells them apart.
            num_heads: None takes heads of width 64, as every released CLIP has.

        Raises:
            ValueError: a tensor that the sizes are read from is missing or has another rank, or the width
                does not divide into the heads.
        """
        vocab_size, dim = shape_of(shapes, "text_model.embeddings.token_embedding.weight", rank=2)
        positions, _ = shape_of(shapes, "text_model.embeddings.position_embedding.weight", rank=2)
        mlp_dim, _ = shape_of(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", rank=2)
        projected = "text_projection.weight" in shapes
        return cls(
            vocab_size=vocab_size,
            positions=positions,
            dim=dim,
            depth=count_layers(shapes, "text_model.encoder.layers."),
            num_heads=max(1, dim // HEAD_DIM) if num_heads is None else num_heads,
            mlp_dim=mlp_dim,
            projection_dim=shape_of(shapes, "text_projection.weight", rank=2)[0] if projected else None,
            activation=activation,
        )

    def __post_init__(self) -> None:
        if not isinstance(self.num_heads, int) or self.num_heads < 1 or self.dim % self.num_heads:
            raise ValueError(f"a width of {self.dim} does not divide into {self.num_heads!r} heads")
        if self.activation not in ("quick_gelu", "gelu"):
            raise ValueError(f"activation must be 'quick_gelu' or 'gelu', got {self.activation!r}")


class Embeddings(nn.Module):
    """Token plus learned position."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.position_embedding = nn.Embedding(config.positions, config.dim)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) to (B, L, D)."""
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class Attention(nn.Module):
    """Causal self-attention: a token sees itself and those before it."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.k_proj = nn.Linear(config.dim, config.dim)
        self.v_proj = nn.Linear(config.dim, config.dim)
        self.q_proj = nn.Linear(config.dim, config.dim)
        self.out_proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (rearrange(p, "b l (h k) -> b h l k", h=self.num_heads) for p in projected)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, L, K)
        return self.out_proj(rearrange(out, "b h l k -> b l (h k)"))


class Mlp(nn.Module):
    """Two linear layers; the activation between them is the config's."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.activation = quick_gelu if config.activation == "quick_gelu" else F.gelu
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Attention, then MLP, each on a normed copy and added back."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.dim)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.dim)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The layers, under the file's name `encoder`. `TextModel.forward` runs them."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))


class TextModel(nn.Module):
    """The transformer, under the file's name `text_model`."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.dim)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) to the tokens before the last layer and the normed ones after it, (B, L, D) each."""
        x = penultimate = self.embeddings(ids)
        for layer in self.encoder.layers:
            penultimate, x = x, layer(x)
        return penultimate, self.final_layer_norm(x)


class CLIP(nn.Module):
    """A CLIP text encoder; its attribute paths are the keys of `clip_l.safetensors` and `clip_g.safetensors`.

    A new module is initialised for training as CLIP was; `initialize` does so again, from a generator.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        if config.projection_dim is not None:
            self.text_projection = nn.Linear(config.dim, config.projection_dim, bias=False)
        self.initialize()

    def forward(self, ids: Tensor) -> CLIPOutput:
        """Encode token ids.

        No padding mask is applied, as in both reference implementations: pads come after the end of
        the text, and the causal attention keeps them from what `pooled` reads, but not from the context.

        Args:
            ids: (B, L) integers, L at most the number of positions (77). The end-of-text token must have
                the largest id of its row, as it has in CLIP's vocabulary: `pooled` is read at the first one.

        Raises:
            ValueError: not integers, not (B, L), too long, or beyond the vocabulary.
        """
        check_ids(ids, vocab_size=self.config.vocab_size, max_length=self.config.positions)
        penultimate, last = self.text_model(ids)
        pooled = last[
            torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)
        ]  # (B, D), the first maximum
        if self.config.projection_dim is not None:
            pooled = self.text_projection(pooled)
        return CLIPOutput(penultimate, last, pooled)

    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, as for training from scratch (OpenAI's `CLIP.initialize_parameters`).

        Normal, with the standard deviation of the residual branches falling with the depth; biases 0.

        Args:
            generator: where the numbers come from; None takes torch's global generator.
        """
        dim, depth = self.config.dim, self.config.depth
        wide = dim**-0.5
        residual = wide * (2 * depth) ** -0.5
        stds = {"q_proj": wide, "k_proj": wide, "v_proj": wide, "out_proj": residual}
        stds |= {"fc1": (2 * dim) ** -0.5, "fc2": residual, "text_projection": wide}
        stds |= {"token_embedding": 0.02, "position_embedding": 0.01}
        for path, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=stds[path.rpartition(".")[2]], generator=generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU, x · sigmoid(1.702 x). It changes CLIP-L's context by 1 %."""
    return x * torch.sigmoid(1.702 * x)
