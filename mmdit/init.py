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
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Embedder):
            for weight in (parameter for parameter in module.parameters() if parameter.ndim == 2):
                nn.init.normal_(weight, std=0.02, generator=generator)
        if isinstance(module, AdaLN):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    nn.init.zeros_(model.final_layer.linear.weight)
    model.pos_embed.copy_(position_table(model.config.dim, model.config.pos_embed_size))
