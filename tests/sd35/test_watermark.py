"""The marks survive noise that is recovered badly, and nobody finds them where they are not."""

import pytest
import torch

from sd35 import SettingsError, State
from sd35.noise import draw_noise, generators
from sd35.watermark import FOUND, MARKS, GaussianShading, TreeRings, shares_as_good

SHAPE = (16, 16, 16)
KEYS = range(1, 9)


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return draw_noise(generators(range(8)), SHAPE)


@pytest.fixture(scope="module", params=sorted(MARKS))
def mark(request):
    return MARKS[request.param](SHAPE)


def test_marked_noise_is_real_and_as_large_as_noise(mark, noise) -> None:
    marked = mark.hide(noise, KEYS)
    assert marked.shape == noise.shape
    assert marked.dtype == torch.float32
    assert float(marked.std()) == pytest.approx(1, abs=0.05)
    assert float(marked.mean()) == pytest.approx(0, abs=0.05)


def test_a_mark_is_found_under_as_much_other_noise(mark, noise) -> None:
    spoilt = (mark.hide(noise, KEYS) + draw_noise(generators(range(100, 108)), SHAPE)) / 2**0.5
    assert (shares_as_good(mark, spoilt, KEYS) <= FOUND).all()


def test_unmarked_noise_agrees_with_a_key_as_with_any_other(mark, noise) -> None:
    shares = torch.cat([shares_as_good(mark, noise, range(k, k + 8)) for k in (100, 200, 300)])
    # 24 shares, even over (0, 1]: a quarter of one is expected to be 0.01 or less.
    assert (shares <= FOUND).sum() <= 2
    assert 0.2 < float(shares.median()) < 0.8


def test_other_keys_are_not_found_in_marked_noise(mark, noise) -> None:
    marked = mark.hide(noise, KEYS)
    own, others = mark.agreement(marked, KEYS).diagonal(), mark.agreement(marked, range(100, 150))
    assert (own > others).all()


def test_a_message_is_read_to_the_last_bit(noise) -> None:
    shading = GaussianShading(SHAPE)
    assert (shading.agreement(shading.hide(noise, KEYS), KEYS).diagonal() == 1).all()


def test_every_ring_has_one_real_value(noise) -> None:
    rings = TreeRings(SHAPE)
    transform = torch.fft.fft2(rings.hide(noise, [7] * len(noise)))[:, 0, rings.mask]
    for number in range(rings.radius + 1):
        ring = transform[:, rings.ring == number]
        torch.testing.assert_close(ring, ring[:1, :1].real.to(ring).expand_as(ring), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", sorted(MARKS))
def test_a_mark_that_a_pipeline_hid_is_found_under_its_key_alone(pipe, tmp_path, name) -> None:
    made = pipe.watermark("a red circle", steps=4, width=128, height=128, key=7, mark=name)
    (path,) = made.state().save(tmp_path / "a.safetensors")
    assert pipe.find_watermark(path, key=7, mark=name).found == (True,)
    assert pipe.find_watermark(State.load(path), key=8, mark=name).found == (False,)
    plain = pipe.generate("a red circle", steps=4, width=128, height=128)
    assert pipe.find_watermark(plain.state(), key=7, mark=name).found == (False,)
    known = pipe.find_watermark(made.latents, "a red circle", key=7, mark=name, steps=4)
    assert known.found == (True,)


def test_what_a_mark_cannot_stand_is_refused(pipe) -> None:
    with pytest.raises(SettingsError, match="sde draws noise at every step, under which a mark is lost"):
        pipe.watermark("a", key=1, solver="sde")
    with pytest.raises(SettingsError, match="mark must be one of tree_rings, gaussian_shading; got 'x'"):
        pipe.watermark("a", key=1, mark="x")
    with pytest.raises(SettingsError, match="key must be a whole number"):
        pipe.find_watermark(torch.zeros(1, 16, 4, 4), key=-1)
