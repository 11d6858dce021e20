"""Every tap of a model with its shape, found without running it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdit import MMDiT
from textenc import CLIP, T5
from vae import VAE

from .errors import TapError
from .parts import Tap, find_taps
from .watch import watching

WINDOW = 77  # tokens of a short prompt for each encoder; the context has a window of CLIP's and one of T5's


@dataclass(frozen=True)
class TapInfo:
    """A tap as a table shows it."""

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...] | None  # the name of each dimension
    text: str  # what it holds

    def __str__(self) -> str:
        dims = self.dims or ("?",) * len(self.shape)
        shape = ", ".join(f"{name} {n}" for name, n in zip(dims, self.shape, strict=True))
        return f"{self.name}  ({shape})  {self.text}".rstrip()


def list_taps(
    module: nn.Module, *, width: int = 1024, height: int = 1024, tokens: int | None = None, batch: int = 1
) -> list[TapInfo]:
    """List the taps of a whole model in the order in which they are computed, with their shapes.

    The model is built anew on torch's meta device and run there, so neither its weights nor its size matter,
    and nothing is computed.

    Args:
        module: an `MMDiT`, `VAE`, `CLIP` or `T5`; one on the meta device will do.
        width: of the picture in pixels.
        height: of the picture in pixels.
        tokens: that the module reads; a CLIP reads no more than its 77. None takes those of a short prompt:
            77 for an encoder, 154 for the transformer.
        batch: rows of the batch; inside a generation both branches are in it.

    Raises:
        TapError: another kind of module.
        ValueError: the model does not take this size.
    """
    if not isinstance(module, MMDiT | VAE | CLIP | T5):
        raise TapError(f"taps are listed of an MMDiT, VAE, CLIP or T5, got {type(module).__name__}")
    found: dict[str, TapInfo] = {}

    def visit(tap: Tap, tensor: Tensor) -> None:
        dims, text = tap.meaning or (None, "")
        found.setdefault(tap.name, TapInfo(tap.name, tuple(tensor.shape), dims, text))

    with torch.device("meta"), torch.no_grad():
        empty = _rebuilt(module)
        with watching(find_taps(empty).values(), visit):
            _run(empty, batch, height, width, tokens)
    return list(found.values())


def _rebuilt(module: MMDiT | VAE | CLIP | T5) -> MMDiT | VAE | CLIP | T5:
    """The same model without weights, on the device in force."""
    if isinstance(module, MMDiT):
        return MMDiT(module.config)
    if isinstance(module, VAE):
        return VAE(module.config)
    return CLIP(module.config) if isinstance(module, CLIP) else T5(module.config)


def _run(module: MMDiT | VAE | CLIP | T5, batch: int, height: int, width: int, tokens: int | None) -> None:
    """Run a model on empty inputs of a picture's size."""
    if isinstance(module, VAE):
        module.decode(module.encode(torch.empty(batch, 3, height, width, dtype=torch.float32)))
    elif isinstance(module, MMDiT):
        config = module.config
        module(
            torch.empty(batch, config.channels, height // 8, width // 8, dtype=torch.float32),
            torch.empty(batch, dtype=torch.float32),
            torch.empty(batch, tokens or 2 * WINDOW, config.context_dim, dtype=torch.float32),
            torch.empty(batch, config.pooled_dim, dtype=torch.float32),
        )
    else:
        length = WINDOW if tokens is None else tokens
        length = min(length, module.config.positions) if isinstance(module, CLIP) else length
        module(torch.zeros(batch, length, dtype=torch.int64))
