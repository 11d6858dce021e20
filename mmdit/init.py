"""Weights to start training from."""

import torch
from torch import nn

from .blocks import AdaLN
from .embed import Embedder, position_table
from .model import MMDiT


@torch.no_grad()
def init_weights(model: MMDiT, generator: torch.Generator) -> None:
    """Draw the weights that training starts from, as DiT does (arXiv:2212.09748, section 3.2).

    Linear layers are Xavier-uniform with zero bias. Every modulation and the last linear layer
    start at zero: each block is then the identity, and the first velocity predicted is zero.

    Args:
        model: changed in place; on the CPU.
        generator: decides every number drawn.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            nn.init.zeros_(module.bias) if module.bias is not None else None
    for module in model.modules():
        if isinstance(module, Embedder):
            nn.init.normal_(module.mlp[0].weight, std=0.02, generator=generator)
            nn.init.normal_(module.mlp[2].weight, std=0.02, generator=generator)
        if isinstance(module, AdaLN):
            nn.init.zeros_(module[1].weight)
            nn.init.zeros_(module[1].bias)
    nn.init.zeros_(model.final_layer.linear.weight)
    model.pos_embed.copy_(position_table(model.config.dim, model.config.pos_embed_size))
