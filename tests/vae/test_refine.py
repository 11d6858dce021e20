import pytest
import torch

from vae.refine import refine, refine_by_encoder


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


def test_without_gradients_what_the_encoder_sees_is_matched(case):
    """On random weights encode is no inverse of decode, so the method is tried where it is: an identity."""

    class Identity:
        config = case[0].config

        def encode(self, image):
            return 0.8 * image[:, :1].repeat(1, 16, 1, 1)[..., ::8, ::8]

        def decode(self, latents):
            return latents[:, :1].repeat_interleave(8, 2).repeat_interleave(8, 3).repeat(1, 3, 1, 1)

    vae = Identity()
    truth = 0.5 * torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0)).clamp(-1.5, 1.5)
    truth = truth.repeat(1, 16, 1, 1)
    image = vae.decode(truth)
    steps = list(refine_by_encoder(vae, image, truth + 0.2, steps=100, rate=0.02))
    assert steps[-1].gain.min() > 20
    torch.testing.assert_close(psnr(vae.decode(steps[-1].latents), image).double(), steps[-1].psnr)
    assert (torch.stack([step.gain for step in steps]).diff(dim=0) >= 0).all()


def test_without_gradients_bad_calls_are_refused(case):
    vae, image, start, _ = case
    with pytest.raises(ValueError, match="steps must be at least 1"):
        refine_by_encoder(vae, image, start, steps=0)
    with pytest.raises(ValueError, match="latents of an image"):
        refine_by_encoder(vae, image, start[..., :1], steps=1)
