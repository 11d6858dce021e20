"""What the modules of each package give: the one table of names, dimensions and meanings.

A module that gives several tensors is listed by its class in `SEVERAL`, each tensor with its name; one that
gives a single tensor, by its path in `TABLES`. A pattern there is that of `match`; the first that fits
counts. Patterns that begin with `**` fit a part of a model (`capture(pipe.mmdit.joint_blocks[3], ...)`) as
well as the whole.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from mmdit.blocks import AdaLN, JointBlock
from textenc import CLIP, CLIPOutput
from textenc.clip import TextModel

from .match import matches


class Meaning(NamedTuple):
    """What a tap holds."""

    dims: tuple[str, ...]
    text: str


class Part(NamedTuple):
    """One of several tensors that a module gives in a tuple."""

    name: str
    meaning: Meaning


def parts_of(module: nn.Module) -> tuple[Part, ...]:
    """The tensors that a module gives in a tuple, in its order; none where it gives one tensor."""
    return next((parts(module) for kind, parts in SEVERAL.items() if isinstance(module, kind)), ())


def meaning_of(root: nn.Module, name: str) -> Meaning | None:
    """What the single tensor of one of our modules is; None for other modules.

    Args:
        root: the module that is watched.
        name: of the tap, as seen from there.
    """
    package = type(root).__module__.partition(".")[0]
    for pattern, dims, text in TABLES.get(package, ()):
        if matches(pattern, name):
            return Meaning(tuple(dims.split()), text)
    return None


def _parts(dims: str, meanings: Mapping[str, str]) -> tuple[Part, ...]:
    return tuple(Part(name, Meaning(tuple(dims.split()), text)) for name, text in meanings.items())


BLOCK = (
    *_parts("batch image_token channel", {"x": "image tokens after the block"}),
    *_parts("batch text_token channel", {"context": "text tokens after the block"}),  # not of the last block
)
MODULATION = _parts(
    "batch one channel",
    dict.fromkeys(
        ("shift", "scale", "gate", "shift_mlp", "scale_mlp", "gate_mlp", "shift2", "scale2", "gate2"),
        "modulation of every token",
    ),
)
"""In the checkpoint's order: the first 2 for a stream that ends, 6, or 9 in dual blocks."""
ENCODED = (
    *_parts("batch text_token channel", {"penultimate": "tokens before the last layer: the context"}),
    *_parts("batch text_token channel", {"last": "normed tokens after all layers"}),
    *_parts("batch pooled_channel", {"pooled": "one vector for the prompt"}),
)

SEVERAL: Mapping[type[nn.Module], Callable[[Any], tuple[Part, ...]]] = {
    JointBlock: lambda block: BLOCK[: 1 if block.last else 2],
    AdaLN: lambda modulation: MODULATION[: modulation.n],
    TextModel: lambda _: ENCODED[:2],
    CLIP: lambda _: ENCODED[: len(CLIPOutput._fields)],
}

Row = tuple[str, str, str]


def _attention(path: str, token: str) -> tuple[Row, ...]:
    heads = f"batch head {token} head_channel"
    return (
        (f"**{path}.qkv", f"batch {token} qkv_channel", "query, key and value side by side"),
        (f"**{path}.ln_q", heads, "query of each head, as the attention reads it"),
        (f"**{path}.ln_k", heads, "key of each head, as the attention reads it"),
        (f"**{path}.v", heads, "value of each head"),
        (f"**{path}.proj", f"batch {token} channel", "what the attention gives, before its gate"),
    )


def _stream(stream: str, token: str) -> tuple[Row, ...]:
    tokens = f"batch {token} channel"
    return (
        *_attention(f"{stream}.attn", token),
        *_attention(f"{stream}.attn2", token),
        (f"**{stream}.attn2", tokens, "what the second attention gives, before its gate"),
        (f"**{stream}.attn2.attention", tokens, "what the second attention gives, before its projection"),
        (f"**{stream}.attn2.attention.logits", "batch head query key", "logits among the image tokens"),
        (f"**{stream}.norm1", tokens, "normed tokens, before shift and scale"),
        (f"**{stream}.attended", tokens, "tokens between attention and MLP"),
        (f"**{stream}.norm2", tokens, "normed tokens of the MLP, before shift and scale"),
        (f"**{stream}.mlp", tokens, "what the MLP gives, before its gate"),
        (f"**{stream}.mlp.fc1", f"batch {token} mlp_channel", "neurons of the MLP, before GELU"),
        (f"**{stream}.mlp.fc2", tokens, "what the MLP gives, before its gate"),
        (f"**{stream}.adaLN_modulation.0", "batch channel", "SiLU of the conditioning"),
        (f"**{stream}.adaLN_modulation.1", "batch modulation_channel", "all modulations side by side"),
    )


MMDIT: tuple[Row, ...] = (
    ("x_embedder", "batch image_token channel", "patches of the latents, without positions"),
    ("x_embedder.proj", "batch channel patch_row patch_column", "patches of the latents as a map"),
    ("patches", "batch image_token channel", "patches with positions: what block 0 reads"),
    ("context_embedder", "batch text_token channel", "projected context: what block 0 reads"),
    ("conditioning", "batch channel", "noise level and pooled text together, c"),
    ("t_embedder", "batch channel", "the noise level"),
    ("t_embedder.**", "batch channel", "the noise level, on its way"),
    ("y_embedder", "batch channel", "the pooled text"),
    ("y_embedder.**", "batch channel", "the pooled text, on its way"),
    *_stream("x_block", "image_token"),
    *_stream("context_block", "text_token"),
    ("**attn.attention", "batch image_token channel", "what the attention gives, before its projection"),
    ("**attention", "batch joint_token channel", "what the joint attention gives; text tokens come first"),
    ("**logits", "batch head query key", "logits of the joint attention; text tokens come first"),
    ("final_layer.norm_final", "batch image_token channel", "normed image tokens, before shift and scale"),
    ("final_layer.linear", "batch image_token patch_channel", "the velocity, a patch in each token"),
    ("final_layer", "batch image_token patch_channel", "the velocity, a patch in each token"),
    ("final_layer.adaLN_modulation.0", "batch channel", "SiLU of the conditioning"),
    ("final_layer.adaLN_modulation.1", "batch modulation_channel", "both modulations side by side"),
    ("output", "batch latent_channel row column", "the velocity"),
)

TEXTENC: tuple[Row, ...] = (
    ("text_projection", "batch pooled_channel", "one vector for the prompt"),
    ("**mlp.fc1", "batch text_token mlp_channel", "neurons of the MLP, before its activation"),
    ("**SelfAttention.[qkv]", "batch text_token inner_channel", "query, key or value, heads side by side"),
    ("**DenseReluDense.wi_[01]", "batch text_token mlp_channel", "one factor of the gated MLP"),
    ("**self_attn.[qkv]_proj", "batch text_token channel", "query, key or value, heads side by side"),
    ("**", "batch text_token channel", "text tokens"),
)

VAE: tuple[Row, ...] = (
    ("encoder", "batch moment_channel row column", "mean and log-variance of the latents, unscaled"),
    ("decoder", "batch colour row column", "the image"),
    ("decoder.conv_out", "batch colour row column", "the image"),
    ("**", "batch channel row column", "a map of features"),
)

TABLES: dict[str, tuple[Row, ...]] = {"mmdit": MMDIT, "textenc": TEXTENC, "vae": VAE}
