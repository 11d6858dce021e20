"""What the transformer's training is made of."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sd35.tiny import transformer
from sd35.tiny.fit import seeded
from sd35.tiny.transformer import ExplicitAttention, Painter, encoded_scenes, is_hidden
from vae import VAE, VAEConfig


@pytest.mark.parametrize(
    "kwargs", [{}, {"is_causal": True}, {"attn_mask": torch.randn(1, 3, 5, 5), "scale": 1.0}]
)
def test_explicit_attention_is_attention(kwargs: dict[str, object]) -> None:
    q, k, v = torch.randn(3, 2, 3, 5, 8, dtype=torch.float64)
    if "attn_mask" in kwargs:
        kwargs = {**kwargs, "attn_mask": kwargs["attn_mask"].double()}
    expected = F.scaled_dot_product_attention(q, k, v, **kwargs)
    with ExplicitAttention():
        actual = F.scaled_dot_product_attention(q, k, v, **kwargs)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-14)


def test_a_dropped_encoder_leaves_zeros() -> None:
    painter = Painter(50, 40, seeded(0))
    ids = [torch.tensor([[48, 3, 49], [48, 4, 49]])] * 2 + [torch.tensor([[5, 1], [6, 1]])]
    keep = torch.tensor([[True, False], [True, True], [False, True]])
    with torch.no_grad():
        context, pooled = painter.encode(ids, keep)
    assert context.shape == (2, 5, 256)
    assert pooled.shape == (2, 192)
    zero = {
        "CLIP-L": context[:, :3, :64].abs().amax((1, 2)) == 0,
        "CLIP-G": context[:, :3, 64:192].abs().amax((1, 2)) == 0,
        "T5": context[:, 3:].abs().amax((1, 2)) == 0,
        "CLIP-L pooled": pooled[:, :64].abs().amax(1) == 0,
    }
    assert {name: value.tolist() for name, value in zero.items()} == {
        "CLIP-L": [False, True],
        "CLIP-G": [False, False],
        "T5": [True, False],
        "CLIP-L pooled": [False, True],
    }


def test_muon_trains_the_matrices_of_the_blocks_and_no_others() -> None:
    painter = Painter(50, 40, seeded(0))
    matrices = {name for name, parameter in painter.named_parameters() if parameter.ndim == 2}
    hidden = {name for name, _ in painter.named_parameters() if is_hidden(name)}
    assert hidden <= matrices
    others = ("embed", "adaLN", "relative_attention_bias", "shared", "final_layer", "text_projection")
    assert {name for name in matrices if not any(other in name for other in others)} == hidden


def test_latents_are_kept_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    def cut(tensors, path: Path, metadata=None) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(transformer, "SCENES", 2)
    vae = VAE(VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1, latent_channels=16))
    path = tmp_path / "latents.safetensors"
    options = {"jitter": 0.25, "seed": 0, "device": torch.device("cpu")}
    with monkeypatch.context() as patch:
        patch.setattr("sd35.tiny.fit.save_file", cut)
        with pytest.raises(KeyboardInterrupt):
            encoded_scenes(vae, path, **options)
    assert list(tmp_path.iterdir()) == []

    _, latents = encoded_scenes(vae, path, **options)
    assert latents.shape == (2, 16, 16, 16)
    assert torch.equal(encoded_scenes(vae, path, **options)[1], latents)
