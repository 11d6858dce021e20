"""Which key of another layout is which official key: one table per component.

`keys.py` explains the notation and reads the tables. Diffusers keeps the text encoders' keys.
"""

from .keys import Layout, Line

MMDIT = Layout(
    our_stack="joint_blocks.",
    their_stack="transformer_blocks.",
    # Diffusers stores the two vectors of a pre-only block and of the final layer as (scale, shift), the
    # official files as (shift, scale): those lines swap. Six and nine vectors have the same order in both.
    lines=(
        Line("pos_embed", "pos_embed.pos_embed"),
        Line("x_embedder.proj.*", "pos_embed.proj.*"),
        Line("context_embedder.*", "context_embedder.*"),
        Line("t_embedder.mlp.0.*", "time_text_embed.timestep_embedder.linear_1.*"),
        Line("t_embedder.mlp.2.*", "time_text_embed.timestep_embedder.linear_2.*"),
        Line("y_embedder.mlp.0.*", "time_text_embed.text_embedder.linear_1.*"),
        Line("y_embedder.mlp.2.*", "time_text_embed.text_embedder.linear_2.*"),
        Line("joint_blocks.{i}.x_block.adaLN_modulation.1.*", "transformer_blocks.{i}.norm1.linear.*"),
        Line("joint_blocks.{i}.x_block.attn.qkv.*", "transformer_blocks.{i}.attn.to_q|k|v.*"),
        Line("joint_blocks.{i}.x_block.attn.ln_q.weight", "transformer_blocks.{i}.attn.norm_q.weight"),
        Line("joint_blocks.{i}.x_block.attn.ln_k.weight", "transformer_blocks.{i}.attn.norm_k.weight"),
        Line("joint_blocks.{i}.x_block.attn.proj.*", "transformer_blocks.{i}.attn.to_out.0.*"),
        Line("joint_blocks.{i}.x_block.attn2.qkv.*", "transformer_blocks.{i}.attn2.to_q|k|v.*"),
        Line("joint_blocks.{i}.x_block.attn2.ln_q.weight", "transformer_blocks.{i}.attn2.norm_q.weight"),
        Line("joint_blocks.{i}.x_block.attn2.ln_k.weight", "transformer_blocks.{i}.attn2.norm_k.weight"),
        Line("joint_blocks.{i}.x_block.attn2.proj.*", "transformer_blocks.{i}.attn2.to_out.0.*"),
        Line("joint_blocks.{i}.x_block.mlp.fc1.*", "transformer_blocks.{i}.ff.net.0.proj.*"),
        Line("joint_blocks.{i}.x_block.mlp.fc2.*", "transformer_blocks.{i}.ff.net.2.*"),
        Line(
            "joint_blocks.{last}.context_block.adaLN_modulation.1.*",
            "transformer_blocks.{last}.norm1_context.linear.*",
            "swap",
        ),
        Line(
            "joint_blocks.{i}.context_block.adaLN_modulation.1.*",
            "transformer_blocks.{i}.norm1_context.linear.*",
        ),
        Line("joint_blocks.{i}.context_block.attn.qkv.*", "transformer_blocks.{i}.attn.add_q|k|v_proj.*"),
        Line(
            "joint_blocks.{i}.context_block.attn.ln_q.weight",
            "transformer_blocks.{i}.attn.norm_added_q.weight",
        ),
        Line(
            "joint_blocks.{i}.context_block.attn.ln_k.weight",
            "transformer_blocks.{i}.attn.norm_added_k.weight",
        ),
        Line("joint_blocks.{i}.context_block.attn.proj.*", "transformer_blocks.{i}.attn.to_add_out.*"),
        Line("joint_blocks.{i}.context_block.mlp.fc1.*", "transformer_blocks.{i}.ff_context.net.0.proj.*"),
        Line("joint_blocks.{i}.context_block.mlp.fc2.*", "transformer_blocks.{i}.ff_context.net.2.*"),
        Line("final_layer.adaLN_modulation.1.*", "norm_out.linear.*", "swap"),
        Line("final_layer.linear.*", "proj_out.*"),
    ),
)

CONTROLNET = Layout(
    our_stack="transformer_blocks.",
    their_stack="transformer_blocks.",
    lines=(
        Line("pos_embed.proj.*", "pos_embed.proj.*"),
        Line("pos_embed_input.proj.*", "pos_embed_input.proj.*"),
        Line("time_text_embed.timestep_embedder.linear_1.*", "time_text_embed.timestep_embedder.linear_1.*"),
        Line("time_text_embed.timestep_embedder.linear_2.*", "time_text_embed.timestep_embedder.linear_2.*"),
        Line("time_text_embed.text_embedder.linear_1.*", "time_text_embed.text_embedder.linear_1.*"),
        Line("time_text_embed.text_embedder.linear_2.*", "time_text_embed.text_embedder.linear_2.*"),
        Line("transformer_blocks.{i}.adaLN_modulation.1.*", "transformer_blocks.{i}.norm1.linear.*"),
        Line("transformer_blocks.{i}.attn.qkv.*", "transformer_blocks.{i}.attn.to_q|k|v.*"),
        Line("transformer_blocks.{i}.attn.proj.*", "transformer_blocks.{i}.attn.to_out.0.*"),
        Line("transformer_blocks.{i}.mlp.fc1.*", "transformer_blocks.{i}.ff.net.0.proj.*"),
        Line("transformer_blocks.{i}.mlp.fc2.*", "transformer_blocks.{i}.ff.net.2.*"),
        Line("controlnet_blocks.{i}.*", "controlnet_blocks.{i}.*"),
    ),
)


_BLOCK = "encoder.block.{i}.layer"
T5_LLAMA = Layout(
    our_stack="encoder.block.",
    their_stack="enc.blk.",
    lines=(
        Line("shared.weight", "token_embd.weight"),
        Line(f"{_BLOCK}.0.SelfAttention.q.weight", "enc.blk.{i}.attn_q.weight"),
        Line(f"{_BLOCK}.0.SelfAttention.k.weight", "enc.blk.{i}.attn_k.weight"),
        Line(f"{_BLOCK}.0.SelfAttention.v.weight", "enc.blk.{i}.attn_v.weight"),
        Line(f"{_BLOCK}.0.SelfAttention.o.weight", "enc.blk.{i}.attn_o.weight"),
        Line(f"{_BLOCK}.0.SelfAttention.relative_attention_bias.weight", "enc.blk.{i}.attn_rel_b.weight"),
        Line(f"{_BLOCK}.0.layer_norm.weight", "enc.blk.{i}.attn_norm.weight"),
        Line(f"{_BLOCK}.1.DenseReluDense.wi_0.weight", "enc.blk.{i}.ffn_gate.weight"),
        Line(f"{_BLOCK}.1.DenseReluDense.wi_1.weight", "enc.blk.{i}.ffn_up.weight"),
        Line(f"{_BLOCK}.1.DenseReluDense.wo.weight", "enc.blk.{i}.ffn_down.weight"),
        Line(f"{_BLOCK}.1.layer_norm.weight", "enc.blk.{i}.ffn_norm.weight"),
        Line("encoder.final_layer_norm.weight", "enc.output_norm.weight"),
    ),
)
"""The T5 encoder in GGUF files, as llama.cpp names it."""


JOINT_CONTROLNET = Layout(
    our_stack="joint_blocks.",
    their_stack="transformer_blocks.",
    # Copies of an MM-DiT's first blocks: none is the last one, whose context vectors are stored otherwise.
    lines=(
        *(
            line
            for line in MMDIT.lines
            if "{last}" not in line.ours and not line.ours.startswith("final_layer.")
        ),
        Line("pos_embed_input.proj.*", "pos_embed_input.proj.*"),
        Line("controlnet_blocks.{i}.*", "controlnet_blocks.{i}.*"),
    ),
)


def _resnet(ours: str, theirs: str) -> tuple[Line, ...]:
    """The lines of one residual block of the autoencoder."""
    pairs = (("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"))
    return tuple(
        Line(f"{ours}.{a}.*", f"{theirs}.{b}.*") for a, b in (*pairs, ("nin_shortcut", "conv_shortcut"))
    )


def _ends_and_middle(side: str) -> tuple[Line, ...]:
    """The lines that the autoencoder's two sides, encoder and decoder, share."""
    attention = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
    return (
        Line(f"{side}.conv_in.*", f"{side}.conv_in.*"),
        *_resnet(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0"),
        Line(f"{side}.mid.attn_1.norm.*", f"{side}.mid_block.attentions.0.group_norm.*"),
        *(
            Line(f"{side}.mid.attn_1.{ours}.*", f"{side}.mid_block.attentions.0.{theirs}.*", "conv")
            for ours, theirs in attention
        ),
        *_resnet(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1"),
        Line(f"{side}.norm_out.*", f"{side}.conv_norm_out.*"),
        Line(f"{side}.conv_out.*", f"{side}.conv_out.*"),
    )


VAE = Layout(
    our_stack="decoder.up.",
    their_stack="decoder.up_blocks.",
    lines=(
        *_ends_and_middle("encoder"),
        *_resnet("encoder.down.{i}.block.{j}", "encoder.down_blocks.{i}.resnets.{j}"),
        Line("encoder.down.{i}.downsample.conv.*", "encoder.down_blocks.{i}.downsamplers.0.conv.*"),
        *_ends_and_middle("decoder"),
        # The official decoder numbers its levels as the encoder does, so it runs up.3 first.
        *_resnet("decoder.up.{i}.block.{j}", "decoder.up_blocks.{~i}.resnets.{j}"),
        Line("decoder.up.{i}.upsample.conv.*", "decoder.up_blocks.{~i}.upsamplers.0.conv.*"),
    ),
)
