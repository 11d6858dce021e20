"""How much arithmetic a forward is, for judging how near a machine comes to its own ceiling."""

from .config import MMDiTConfig
from .embed import TIMESTEP_CHANNELS


def flops(config: MMDiTConfig, *, height: int, width: int, context: int, batch: int = 1) -> int:
    """Floating-point operations of one forward: two for each multiplication of a matrix product.

    Norms, modulation and activations are not counted (about 1 %). Both products of attention are, q kᵀ and
    that with v, over the whole sequence [context, x].

    Args:
        config: of the model.
        height: of the latents, a picture's / 8.
        width: of the latents.
        context: text tokens, M; 154 or 333 as a rule.
        batch: samples, 2 with guidance.
    """
    dim, patch = config.dim, config.patch_size
    x = (height // patch) * (width // patch)
    last = config.depth - 1

    def attend(tokens: int) -> int:
        return 2 * tokens * tokens * dim  # q kᵀ and the product with v

    total = x * config.channels * patch * patch * dim * 2  # x_embedder and final_layer, equally large
    total += context * config.context_dim * dim
    total += (TIMESTEP_CHANNELS + config.pooled_dim + 2 * dim) * dim + 2 * dim * dim  # c; final modulation
    for i in range(config.depth):
        dual = i in config.dual_blocks
        total += x * (16 if dual else 12) * dim * dim + attend(x) * dual  # qkv 3, proj 1, mlp 8; attn2 4 more
        total += context * (3 if i == last else 12) * dim * dim
        total += attend(x + context) + ((9 if dual else 6) + (2 if i == last else 6)) * dim * dim
    return 2 * batch * total
