"""How many pixels a latent and a token stand for, in every model of this family."""

LATENT = 8
"""Pixels along a side of a latent."""

SIZE_UNIT = 2 * LATENT
"""Pixels along a side of a token, whose patches are 2 x 2 latents: sides of pictures are multiples of it."""
