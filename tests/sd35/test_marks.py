"""The marks survive noise that is recovered badly, and nobody finds them where they are not."""

import pytest
import torch

from sd35 import marks
from sd35.errors import SettingsError
from sd35.noise import draw_noise, generators

SHAPE = (16, 16, 16)
KEYS = range(1, 9)


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return draw_noise(generators(range(8)), SHAPE)


@pytest.fixture(scope="module", params=marks.MARKS)
def mark(request):
    return marks.MARKS[request.param](SHAPE)


def test_marked_noise_is_real_and_as_large_as_noise(mark, noise) -> None:
    marked = mark.hide(noise, KEYS)
    assert marked.shape == noise.shape
    assert marked.dtype == torch.float32
    assert float(marked.std()) == pytest.approx(1, abs=0.05)
    assert float(marked.mean()) == pytest.approx(0, abs=0.05)


def test_a_mark_is_found_under_as_much_other_noise(mark, noise) -> None:
    spoilt = (mark.hide(noise, KEYS) + draw_noise(generators(range(100, 108)), SHAPE)) / 2**0.5
    assert (marks.shares_as_good(mark, spoilt, KEYS) <= marks.FOUND).all()


def test_unmarked_noise_agrees_with_a_key_as_with_any_other(mark, noise) -> None:
    shares = torch.cat([marks.shares_as_good(mark, noise, range(k, k + 8)) for k in (100, 200, 300)])
    # 24 shares, even over (0, 1]: a quarter of one is expected to be 0.01 or less.
    assert (shares <= marks.FOUND).sum() <= 2
    assert 0.2 < float(shares.median()) < 0.8


def test_other_keys_are_not_found_in_marked_noise(mark, noise) -> None:
    marked = mark.hide(noise, KEYS)
    own, others = mark.agreement(marked, KEYS).diagonal(), mark.agreement(marked, range(100, 150))
    assert (own > others).all()


def test_a_message_is_read_to_the_last_bit(noise) -> None:
    shading = marks.GaussianShading(SHAPE)
    assert (shading.agreement(shading.hide(noise, KEYS), KEYS).diagonal() == 1).all()


def test_every_ring_has_one_real_value(noise) -> None:
    rings = marks.TreeRings(SHAPE)
    transform = torch.fft.fft2(rings.hide(noise, [7] * len(noise)))[:, 0, rings.mask]
    for number in range(rings.radius + 1):
        ring = transform[:, rings.ring == number]
        torch.testing.assert_close(ring, ring[:1, :1].real.to(ring).expand_as(ring), atol=1e-3, rtol=0)


def test_a_mark_is_put_and_looked_for_in_a_file(pipe, tmp_path) -> None:
    """The network here has no knowledge, so that only the way is tried: latents kept, one step."""
    result = pipe.watermark(["a", "b"], key=7, steps=1, guidance_scale=1)
    plain = pipe.generate(["a", "b"], steps=1, guidance_scale=1)
    hidden = marks.TreeRings(result.noise.shape[1:]).hide(plain.noise, [7, 8])
    assert torch.equal(result.noise, hidden)
    paths = result.save(tmp_path / "a.png")
    sought = pipe.find_watermark(paths[1], key=8, steps=1)
    assert sought.shares.shape == (1,)
    assert sought.found == (bool(sought.shares[0] <= marks.FOUND),)
    for given in ({"key": 9}, {"key": 8, "mark": "gaussian_shading"}):
        anew = pipe.find_watermark(paths[1], steps=1, **given)
        assert torch.equal(sought.again(**given).shares, anew.shares)
    assert torch.equal(sought.again(mark="tree_rings").shares, sought.shares)
    for wrong, said in (({"mark": "rings"}, "mark must be one of"), ({"steps": 2}, "key and mark alone")):
        with pytest.raises(SettingsError, match=said):
            sought.again(**wrong)


def test_the_command_puts_and_finds(model_folder, tmp_path, capsys) -> None:
    from sd35.cli import main

    path, model = tmp_path / "a.png", ["-m", str(model_folder), "--steps", "2"]
    assert main(["watermark", "put", "a", "--key", "7", "-o", str(path), *model]) == 0
    assert main(["watermark", "find", str(path), "--key", "7", *model]) in (0, 1)
    assert "of the keys agree as well" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["watermark", "find", str(path), *model])
    assert "--key" in capsys.readouterr().err
    assert main(["watermark", "find", str(path), "--key", "-1", *model]) == 2
    assert main(["watermark", "find", str(path), "--key", "7", "--seed", "7", *model]) == 2
    assert "seed has no effect here" in capsys.readouterr().err
