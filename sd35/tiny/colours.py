"""An autoencoder that passes colours on before it has learned anything: where its training starts.

From random weights this autoencoder learns shapes in minutes and colours in hours, because its norms
take the mean off every group of channels: a flat colour, which is all mean, gets lost. So the
weights start as a path through all convolutions that carries the colour. In each group of channels,

    slot     0        1        2          3
    holds    colour   -colour  +CARRIER   -CARRIER

and the constants of the carriers give the norm a deviation that hardly depends on the colour. As
swish(n) - swish(-n) = n, the convolution behind a norm and a swish reads the colour from slots 0 and 1.
Latent channels 0 to 2 begin as the mean colour of a block of 8 x 8 pixels; the others learn the rest.
"""

import torch
from torch import Tensor, nn

from vae import VAE, VAEConfig
from vae.blocks import GROUPS

CARRIER = 2.0  # the colours it stands beside are in [-1, 1]
GAIN = {4: CARRIER / 2**0.5, 3: 2.3}  # undoes the norm: exactly with four slots, nearly with three
NOISE = 0.1  # torch's default weights, as drawn, are kept to this share
INITIAL_LOGVAR = -5.0  # of the posterior: noise that drowned the latents would hide what they should learn


@torch.no_grad()
def colour_passing_vae(config: VAEConfig, seed: int) -> VAE:
    """Build an autoencoder whose untrained reconstruction is the picture, blurred.

    Args:
        config: sizes; every level has 96 or 128 channels, since a group needs three slots or four.
        seed: of the random share of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = VAE(config)
    for path, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if path.endswith(("conv2", "proj_out")):  # what residual branches end in: they start as nothing
            nn.init.zeros_(module.weight)
            nn.init.zeros_(bias_of(module))
        elif path.endswith(("downsample.conv", "upsample.conv", "nin_shortcut")):
            _pass(module, module.in_channels // GROUPS)
    for half in (vae.encoder, vae.decoder):
        _pass(half.conv_in, None)
        _read(half.conv_out)
    bias_of(vae.encoder.conv_out)[config.latent_channels :] = INITIAL_LOGVAR
    return vae


def bias_of(conv: nn.Conv2d) -> Tensor:
    """A convolution's bias, which every one of the autoencoder has."""
    assert conv.bias is not None
    return conv.bias


def _pass(conv: nn.Conv2d, slots_in: int | None) -> None:
    """Copy slots 0 and 1 of each group, from plain colours (None) or from groups of so many slots."""
    slots = conv.out_channels // GROUPS
    tap = _tap(conv)
    conv.weight *= NOISE
    nn.init.zeros_(bias_of(conv))
    for group in range(GROUPS):
        for slot in range(2):
            source = group % 3 if slots_in is None else group * slots_in + slot
            sign = -1.0 if slots_in is None and slot == 1 else 1.0
            conv.weight[group * slots + slot, source] += sign * tap
    bias_of(conv)[2::slots] = CARRIER
    if slots == 4:
        bias_of(conv)[3::slots] = -CARRIER


def _tap(conv: nn.Conv2d) -> Tensor:
    """The kernel that copies a pixel, or at stride 2 the mean of four."""
    kernel = torch.zeros(conv.kernel_size)
    if conv.stride == (2, 2):
        kernel[:2, :2] = 0.25
    else:
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1.0
    return kernel


def _read(conv: nn.Conv2d) -> None:
    """Colours out of normed groups, all groups that hold a colour having an equal say."""
    slots = conv.in_channels // GROUPS
    conv.weight *= NOISE
    nn.init.zeros_(bias_of(conv))
    for group in range(GROUPS):
        for slot, sign in ((0, 1.0), (1, -1.0)):
            conv.weight[group % 3, group * slots + slot] += sign * GAIN[slots] * 3 / GROUPS * _tap(conv)
