"""The marks survive noise that is recovered badly, and nobody finds them where they are not."""

import importlib.util
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sd35.noise import draw_noise, generators
from weights.source import TINY

SHAPE = (16, 16, 16)
KEYS = range(1, 9)


@pytest.fixture(scope="module")
def watermark() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "watermark.py"
    spec = importlib.util.spec_from_file_location("watermark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return draw_noise(generators(range(8)), SHAPE)


@pytest.fixture(scope="module", params=["TreeRings", "GaussianShading"])
def mark(watermark, request):
    return getattr(watermark, request.param)(SHAPE)


def test_marked_noise_is_real_and_as_large_as_noise(mark, noise) -> None:
    marked = mark.hide(noise, KEYS)
    assert marked.shape == noise.shape
    assert marked.dtype == torch.float32
    assert float(marked.std()) == pytest.approx(1, abs=0.05)
    assert float(marked.mean()) == pytest.approx(0, abs=0.05)


def test_a_mark_is_found_under_as_much_other_noise(watermark, mark, noise) -> None:
    spoilt = (mark.hide(noise, KEYS) + draw_noise(generators(range(100, 108)), SHAPE)) / 2**0.5
    assert (watermark.shares_as_good(mark, spoilt, KEYS) <= watermark.FOUND).all()


def test_unmarked_noise_agrees_with_a_key_as_with_any_other(watermark, mark, noise) -> None:
    shares = torch.cat([watermark.shares_as_good(mark, noise, range(k, k + 8)) for k in (100, 200, 300)])
    # 24 shares, even over (0, 1]: a quarter of one is expected to be 0.01 or less.
    assert (shares <= watermark.FOUND).sum() <= 2
    assert 0.2 < float(shares.median()) < 0.8


def test_other_keys_are_not_found_in_marked_noise(watermark, mark, noise) -> None:
    marked = mark.hide(noise, KEYS)
    own, others = mark.agreement(marked, KEYS).diagonal(), mark.agreement(marked, range(100, 150))
    assert (own > others).all()


def test_a_message_is_read_to_the_last_bit(watermark, noise) -> None:
    shading = watermark.GaussianShading(SHAPE)
    assert (shading.agreement(shading.hide(noise, KEYS), KEYS).diagonal() == 1).all()


def test_every_ring_has_one_real_value(watermark, noise) -> None:
    rings = watermark.TreeRings(SHAPE)
    transform = torch.fft.fft2(rings.hide(noise, [7] * len(noise)))[:, 0, rings.mask]
    for number in range(rings.radius + 1):
        ring = transform[:, rings.ring == number]
        torch.testing.assert_close(ring, ring[:1, :1].real.to(ring).expand_as(ring), atol=1e-3, rtol=0)


@pytest.mark.skipif(not list(TINY.glob("*.safetensors")), reason="the embedded model's weights are not here")
def test_it_counts_pictures(watermark, capsys) -> None:
    watermark.main(["--model", "tiny", "--pictures", "2", "--steps", "2", "--batch-size", "2"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert {tuple(row[:3]) for row in rows} == set(
        product(
            ("tree rings", "Gaussian shading"),
            ("latents", "picture"),
            ("naive", "exact", "naive, without the prompt"),
        )
    )
    assert all(cell in ("0 of 2", "1 of 2", "2 of 2") for row in rows for cell in row[3:])
