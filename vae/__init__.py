"""The 16-channel autoencoder alone: images to latents and back."""

from .config import VAEConfig
from .model import SCALE, SHIFT, VAE

__all__ = ["SCALE", "SHIFT", "VAE", "VAEConfig"]
