import pytest
import torch

from vae import SCALE, SHIFT, VAE, VAEConfig
from vae.model import posterior_sample


def an_image(batch=1, height=16, width=24, **kwargs):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1), **kwargs) * 2 - 1


@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 40)])
def test_any_multiple_of_eight(small, height, width):
    latents = small.encode(an_image(2, height, width))
    assert latents.shape == (2, 16, height // 8, width // 8)
    assert small.decode(latents).shape == (2, 3, height, width)


def test_latents_are_the_mean_shifted_and_scaled(small):
    mean, _ = small.moments(an_image())
    assert torch.equal(small.encode(an_image()), (mean - SHIFT) * SCALE)


def test_decode_undoes_shift_and_scale(small):
    z = torch.randn(1, 16, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small.double()
    torch.testing.assert_close(small.decode((z - SHIFT) * SCALE), small.decoder(z), rtol=1e-12, atol=1e-12)


def test_sample_is_drawn_from_the_generator_in_float32(small):
    mean, logvar = small.moments(an_image(2))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
    latents = small.encode(an_image(2), sample=True, generator=torch.Generator().manual_seed(7))
    assert torch.equal(latents, (posterior_sample(mean, logvar, noise) - SHIFT) * SCALE)
    half = small.to(torch.bfloat16).encode(
        an_image(2), sample=True, generator=torch.Generator().manual_seed(7)
    )
    assert (half - latents).abs().max() < 0.2 * latents.std()  # the same noise


def test_mean_leaves_the_generator_alone(small):
    generator = torch.Generator().manual_seed(7)
    before = generator.get_state()
    small.encode(an_image(), generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_sample_needs_a_generator(small):
    with pytest.raises(ValueError, match="generator="):
        small.encode(an_image(), sample=True)


@pytest.mark.parametrize(("raw", "held"), [(1e3, 20.0), (-1e3, -30.0), (3.0, 3.0)])
def test_logvar_is_clamped(small, raw, held):
    small.encoder.conv_out.weight.zero_()
    small.encoder.conv_out.bias.fill_(raw)
    mean, logvar = small.moments(an_image())
    assert logvar.unique().item() == held
    assert mean.unique().item() == raw


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_answers_in_the_dtype_that_came_in(small, weights, dtype):
    small.to(weights)
    latents = small.encode(an_image().to(dtype))
    assert latents.dtype == dtype
    assert small.decode(latents).dtype == dtype


def test_an_image_of_a_batch_equals_itself_alone(small):
    small.double()
    images = an_image(3, dtype=torch.float64)
    latents = small.encode(images)
    torch.testing.assert_close(small.encode(images[1:2]), latents[1:2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small.decode(latents[1:2]), small.decode(latents)[1:2], rtol=1e-12, atol=1e-12)


def test_runs_under_autocast_and_trains(small):
    small.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        mean, logvar = small.moments(an_image())
        z = posterior_sample(mean, logvar, torch.zeros_like(mean))
        loss = (small.decode((z - SHIFT) * SCALE) - an_image()).square().mean()
    loss.backward()
    dead = [name for name, p in small.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    # With no noise drawn, half of the encoder's last layer has no say; a zero gradient is not a missing one.
    assert not dead
    assert small.encoder.conv_in.weight.grad.count_nonzero() > 0


def test_learns(small):
    small.requires_grad_(True)
    optimizer = torch.optim.Adam(small.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        loss = (small.decode(small.encode(an_image())) - an_image()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_official_paths():
    with torch.device("meta"):
        names = set(VAE(VAEConfig((32, 64), num_res_blocks=1, latent_channels=16)).state_dict())
    assert {
        "encoder.down.0.downsample.conv.weight",
        "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.mid.attn_1.proj_out.bias",
        "decoder.up.1.upsample.conv.weight",
        "decoder.up.0.block.1.norm2.weight",
    } <= names
    assert not any(name.startswith(("encoder.down.1.downsample", "decoder.up.0.upsample")) for name in names)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 16, 16), r"must be \(B, 3, H, W\)"),
        (torch.zeros(1, 4, 16, 16), r"got \(1, 4, 16, 16\)"),
        (torch.zeros(0, 3, 16, 16), "not empty"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "to_tensor"),
        (torch.zeros(1, 3, 20, 33), "multiples of 8, got 20 x 33; the nearest are 16 x 32"),
        (torch.zeros(1, 3, 3, 8), "the nearest are 8 x 8"),
    ],
)
def test_images_that_do_not_fit(small, image, message):
    with pytest.raises(ValueError, match=message):
        small.encode(image)


@pytest.mark.parametrize("shape", [(1, 4, 2, 2), (16, 2, 2), (1, 16, 0, 2)])
def test_latents_that_do_not_fit(small, shape):
    with pytest.raises(ValueError, match=r"latents must be \(B, 16, H, W\)"):
        small.decode(torch.zeros(shape))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_seed_draws_the_same_on_every_device(small):
    on_cpu = small.encode(an_image(), sample=True, generator=torch.Generator().manual_seed(7))
    on_gpu = small.cuda().encode(an_image().cuda(), sample=True, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=2e-2)  # TF32 convolutions
