"""A small pipeline with random weights and the real grammar's tokenizers."""

import pytest
import torch

from mmdit import MMDiT, MMDiTConfig
from sd35.pipeline import Pipeline
from sd35.size import Size
from sd35.tiny.vocabulary import write_tokenizers
from textenc import CLIP, T5, CLIPConfig, CLIPTokenizer, T5Config, T5Tokenizer, TextEncoder
from vae import VAE, VAEConfig

WIDTH = 128  # of the context, and of the pooled text


def _random(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.requires_grad_(False).normal_(std=tensor.shape[-1] ** -0.5, generator=generator)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """Encoders of one layer; each word of the grammar is one token, and other words fall apart."""
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder)
    tokenizers = [
        CLIPTokenizer.load(folder / name, pad_with_end=not i)
        for i, name in enumerate(("tokenizer", "tokenizer_2"))
    ]
    sizes = [tokenizer.tokenizer.get_vocab_size() for tokenizer in tokenizers]
    clips = [
        CLIP(CLIPConfig(size, 77, 64, 1, 1, 64, projection, "gelu")).requires_grad_(False).eval()
        for size, projection in zip(sizes, (None, 64), strict=True)
    ]
    tokenizer_t5 = T5Tokenizer.load(folder / "tokenizer_3")
    t5 = T5(T5Config(tokenizer_t5.tokenizer.get_vocab_size(), WIDTH, 1, 2, 64, 64, 32)).requires_grad_(False)
    return TextEncoder(
        clip_l=clips[0],
        clip_g=clips[1],
        t5=t5,
        tokenizer_l=tokenizers[0],
        tokenizer_g=tokenizers[1],
        tokenizer_t5=tokenizer_t5,
    )


@pytest.fixture(scope="session")
def mmdit() -> MMDiT:
    """Blocks 0 and 1 are dual; queries and keys are large, so that the attention is not even."""
    config = MMDiTConfig(
        dim=128,
        depth=3,
        num_heads=2,
        pos_embed_size=8,
        context_dim=WIDTH,
        pooled_dim=WIDTH,
        dual_blocks=(0, 1),
    )
    model = MMDiT(config).eval()
    _random(model, 0)
    for name, parameter in model.named_parameters():
        if name.endswith(("ln_q.weight", "ln_k.weight")):
            parameter.mul_(4)
    return model


@pytest.fixture(scope="session")
def pipe(mmdit: MMDiT, text: TextEncoder) -> Pipeline:
    """Draws 64 x 48 pixels."""
    vae = VAE(VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1, latent_channels=16)).requires_grad_(
        False
    )
    return Pipeline(mmdit, vae, text, model="random", size=Size(64, 48))


@pytest.fixture(autouse=True)
def _leaves_nothing(mmdit: MMDiT):
    """Whatever a test does, no hook stays on the model."""
    yield
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in mmdit.modules())
