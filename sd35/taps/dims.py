"""What the dimensions of each tap are: one table for each package of models.

A pattern is that of `match`; the first that fits counts. Patterns that begin with `**` fit a part of a model
(`capture(pipe.mmdit.joint_blocks[3], ...)`) as well as the whole.
"""

from typing import NamedTuple

from torch import nn

from .match import matches


class Meaning(NamedTuple):
    """What a tap holds."""

    dims: tuple[str, ...]
    text: str


def meaning_of(root: nn.Module, name: str) -> Meaning | None:
    """What a tap of one of our modules holds; None for other modules.

    Args:
        root: the module that is watched.
        name: of the tap, as seen from there.
    """
    package = type(root).__module__.partition(".")[0]
    for pattern, dims, text in TABLES.get(package, ()):
        if matches(pattern, name):
            return Meaning(tuple(dims.split()), text)
    return None


def dims_of(root: nn.Module, name: str) -> tuple[str, ...] | None:
    """The names of a tap's dimensions; None where they are not known."""
    meaning = meaning_of(root, name)
    return None if meaning is None else meaning.dims


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
    tokens, one = f"batch {token} channel", "batch one channel"
    return (
        *_attention(f"{stream}.attn", token),
        *_attention(f"{stream}.attn2", token),
        (f"**{stream}.attn2", tokens, "what the second attention gives, before its gate"),
        (f"**{stream}.norm1", tokens, "normed tokens, before shift and scale"),
        (f"**{stream}.attended", tokens, "tokens between attention and MLP"),
        (f"**{stream}.norm2", tokens, "normed tokens of the MLP, before shift and scale"),
        (f"**{stream}.mlp", tokens, "what the MLP gives, before its gate"),
        (f"**{stream}.mlp.fc1", f"batch {token} mlp_channel", "neurons of the MLP, before GELU"),
        (f"**{stream}.mlp.fc2", tokens, "what the MLP gives, before its gate"),
        (f"**{stream}.adaLN_modulation.0", "batch channel", "SiLU of the conditioning"),
        (f"**{stream}.adaLN_modulation.1", "batch modulation_channel", "all modulations side by side"),
        (f"**{stream}.adaLN_modulation.*", one, "modulation of every token"),
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
    ("**attention", "batch joint_token channel", "what the joint attention gives; text tokens come first"),
    ("joint_blocks.*.x", "batch image_token channel", "image tokens after the block"),
    ("joint_blocks.*.context", "batch text_token channel", "text tokens after the block"),
    ("x", "batch image_token channel", "image tokens after the block"),
    ("context", "batch text_token channel", "text tokens after the block"),
    ("final_layer.norm_final", "batch image_token channel", "normed image tokens, before shift and scale"),
    ("final_layer.linear", "batch image_token patch_channel", "the velocity, a patch in each token"),
    ("final_layer", "batch image_token patch_channel", "the velocity, a patch in each token"),
    ("final_layer.adaLN_modulation.0", "batch channel", "SiLU of the conditioning"),
    ("final_layer.adaLN_modulation.1", "batch modulation_channel", "both modulations side by side"),
    ("final_layer.adaLN_modulation.*", "batch one channel", "modulation of every token"),
    ("output", "batch latent_channel row column", "the velocity"),
)

TEXTENC: tuple[Row, ...] = (
    ("**pooled", "batch pooled_channel", "one vector for the prompt"),
    ("text_projection", "batch pooled_channel", "one vector for the prompt"),
    ("**mlp.fc1", "batch text_token mlp_channel", "neurons of the MLP, before its activation"),
    ("**SelfAttention.[qkv]", "batch text_token inner_channel", "query, key or value, heads side by side"),
    ("**DenseReluDense.wi_[01]", "batch text_token mlp_channel", "one factor of the gated MLP"),
    ("**self_attn.[qkv]_proj", "batch text_token channel", "query, key or value, heads side by side"),
    ("**penultimate", "batch text_token channel", "tokens before the last layer: the context"),
    ("**last", "batch text_token channel", "normed tokens after all layers"),
    ("**", "batch text_token channel", "text tokens"),
)

VAE: tuple[Row, ...] = (
    ("encoder", "batch moment_channel row column", "mean and log-variance of the latents, unscaled"),
    ("decoder", "batch colour row column", "the image"),
    ("decoder.conv_out", "batch colour row column", "the image"),
    ("**", "batch channel row column", "a map of features"),
)

TABLES: dict[str, tuple[Row, ...]] = {"mmdit": MMDIT, "textenc": TEXTENC, "vae": VAE}
