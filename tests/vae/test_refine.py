import pytest
import torch

from vae.refine import refine


@pytest.fixture
def case(small):
    """A picture that the decoder can make, clipped in places, and latents some way off."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(2, 16, 2, 3, generator=generator)
    image = small.decode(truth).clamp(-1, 1)
    assert (image.abs() == 1).any()
    return small, image, truth + 0.1 * torch.randn(truth.shape, generator=generator), truth


def psnr(ours, picture):
    return 10 * torch.log10(4 / (ours.clamp(-1, 1) - picture).square().flatten(1).mean(1))


def test_gains_and_says_truly_how_much(case):
    vae, image, start, truth = case
    *_, last = refine(vae, image, start, steps=25)
    assert last.number == 25
    after, before = psnr(vae.decode(last.latents), image), psnr(vae.decode(start), image)
    torch.testing.assert_close(last.psnr.float(), after, rtol=0, atol=0.05)
    torch.testing.assert_close(last.gain.float(), after - before, rtol=0, atol=0.05)
    assert last.gain.min() > 10
    assert ((last.latents - truth).square().mean() < 0.25 * (start - truth).square().mean()).item()


def test_never_loses(case):
    vae, image, start, _ = case
    gains = torch.stack([step.gain for step in refine(vae, image, start, steps=10)])
    assert (gains[0] >= 0).all()
    assert (gains.diff(dim=0) >= 0).all()


def test_samples_do_not_influence_each_other(case):
    vae, image, start, _ = case
    *_, together = refine(vae, image, start, steps=4)
    *_, alone = refine(vae, image[1:], start[1:], steps=4)
    assert torch.equal(together.latents[1:], alone.latents)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_any_grad_mode_and_nothing_touched(case, mode):
    vae, image, start, _ = case
    vae.requires_grad_(True)
    kept = start.clone()
    with mode():
        steps = refine(vae, image.clone(), start.clone(), steps=3)
        first = next(steps)
        assert not torch.is_grad_enabled()
        *_, last = steps
    assert (last.gain > first.gain).all()
    assert torch.equal(start, kept)
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_the_truth_is_left_alone(case):
    vae, image, _, truth = case
    (step,) = refine(vae, image, truth, steps=1)
    torch.testing.assert_close(step.latents, truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vae, image, start: refine(vae, image, start, steps=0), "at least 1"),
        (lambda vae, image, start: refine(vae.to(torch.bfloat16), image, start), "float32 or float64"),
        (
            lambda vae, image, start: refine(vae, image[:1], start),
            r"are \(1, 16, 2, 3\), got \(2, 16, 2, 3\)",
        ),
        (lambda vae, image, start: refine(vae, image[..., :-1], start), "multiples of 8"),
        (lambda vae, image, start: refine(vae, image, start[:, :4]), r"\(B, 16, H, W\)"),
    ],
)
def test_bad_calls_fail_at_once(case, change, message):
    vae, image, start, _ = case
    with pytest.raises(ValueError, match=message):
        change(vae, image, start)


@pytest.mark.parametrize("which", ["image", "latents"])
def test_broken_values(case, which):
    vae, image, start, _ = case
    (image if which == "image" else start)[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        next(refine(vae, image, start))
