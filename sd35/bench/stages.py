"""What is run, from the transformer to the import, each beside the same of a peer where there is one."""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import flow
from mmdit import MMDiT, MMDiTConfig
from textenc import T5, Encoding, Prompt
from weights import load_mmdit

from ..velocity import GuidedVelocity
from .clock import Run, Timing, alternate
from .parts import Parts, random_module
from .peer import Peer

TOKENS = 154
"""Tokens of a prompt: 77 of CLIP, and the 77 that T5 is padded to."""
CLIP_LENGTH = 77
HOST_BLOCKS = 24
"""Blocks of the small transformer, whose step costs nothing but Python and calls of operators."""
OURS = "from sd35 import load"
MMDIT_PREFIX = "model.diffusion_model."


@dataclass(frozen=True)
class Measured:
    """One stage."""

    name: str
    ours: Timing
    theirs: Timing | None
    flops: int | None  # of a call: matrix products, convolutions, attention


@dataclass(frozen=True)
class _Stage:
    name: str
    ours: Run
    theirs: Run | None
    counted: bool = True  # whether operations are counted
    warm: bool = True  # see `alternate`


@torch.inference_mode()
def run_stages(
    parts: Parts, repeats: int, peer: Peer | None = None, only: Sequence[str] = ()
) -> Iterator[Measured]:
    """Measure one stage after the other.

    Args:
        parts: the models.
        repeats: calls of each, in turn with the peer's, at least 1.
        peer: measured beside, with models of the same sizes.
        only: some of `STAGES`; none are all of them.

    Yields:
        Each stage as soon as it is measured.
    """
    for stage in _stages(parts, peer, only or tuple(STAGES)):
        flops = _flops(stage.ours) if stage.counted else None
        runs = [stage.ours] if stage.theirs is None else [stage.ours, stage.theirs]
        timings = alternate(runs, repeats, parts.device, warm=stage.warm)
        yield Measured(stage.name, timings[0], timings[1] if len(timings) > 1 else None, flops)
        del stage, runs
        gc.collect()


def _flops(run: Run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _stages(parts: Parts, peer: Peer | None, only: Sequence[str]) -> Iterator[_Stage]:
    for name, make in STAGES.items():
        if name in only:
            yield from make(parts, peer)


def _transformer(parts: Parts, peer: Peer | None) -> Iterator[_Stage]:
    """A guided step of the transformer alone: a batch of two."""
    model = parts.mmdit()
    config, where = model.config, (parts.device, parts.dtype)
    theirs = None if peer is None else peer.transformer(config, *where)
    for side in parts.pixels:
        given = (
            torch.randn(2, config.channels, side // 8, side // 8, device=parts.device).to(parts.dtype),
            torch.full((2,), 0.7, device=parts.device),
            torch.randn(2, TOKENS, config.context_dim, device=parts.device).to(parts.dtype),
            torch.randn(2, config.pooled_dim, device=parts.device).to(parts.dtype),
        )
        yield _Stage(
            f"transformer, {side} px",
            lambda given=given: model(*given),
            None if theirs is None else lambda given=given: theirs(*given),
        )


def _host(parts: Parts, peer: Peer | None) -> Iterator[_Stage]:
    """A guided step of Euler's method where the network costs next to nothing: what Python costs."""
    config = MMDiTConfig(
        dim=64,
        depth=HOST_BLOCKS,
        num_heads=1,
        pos_embed_size=16,
        context_dim=64,
        pooled_dim=64,
        dual_blocks=tuple(range(13)),
    )
    where = parts.device, parts.dtype
    model = random_module(lambda: MMDiT(config), *where)
    latents = torch.randn(1, 16, 8, 8, device=parts.device)
    context, pooled = (
        torch.randn(2, *shape, device=parts.device).to(parts.dtype) for shape in ((8, 64), (64,))
    )
    cond, uncond = (
        Encoding(context[i : i + 1], pooled[i : i + 1], (Prompt(),), ((),), (), "reference") for i in (0, 1)
    )
    sigmas = flow.sigmas(1)
    velocity = GuidedVelocity(model, [cond], uncond, 4.5, sigmas=sigmas)
    theirs = None if peer is None else peer.step(config, *where)
    yield _Stage(
        f"a step's Python, {HOST_BLOCKS} small blocks",
        lambda: flow.solve(velocity, latents, sigmas),
        None if theirs is None else lambda: theirs(latents, context, pooled),
        counted=False,
    )


def _autoencoder(parts: Parts, peer: Peer | None) -> Iterator[_Stage]:
    model, side = parts.vae(), parts.pixels[0]
    factor = model.config.factor
    latents = torch.randn(
        1, model.config.latent_channels, side // factor, side // factor, device=parts.device
    )
    latents = latents.to(parts.dtype)
    image = (2 * torch.rand(1, 3, side, side, device=parts.device) - 1).to(parts.dtype)
    decode, encode = (
        (None, None) if peer is None else peer.autoencoder(model.config, parts.device, parts.dtype)
    )
    yield _Stage(
        f"VAE decode, {side} px",
        lambda: model.decode(latents),
        None if decode is None else lambda: decode(latents),
    )
    yield _Stage(
        f"VAE encode, {side} px",
        lambda: model.encode(image),
        None if encode is None else lambda: encode(image),
    )


def _encoders(parts: Parts, peer: Peer | None) -> Iterator[_Stage]:
    """A prompt and the negative one."""
    for name, make in parts.encoders.items():
        model = make()
        config = model.config
        length = CLIP_LENGTH if isinstance(model, T5) else min(CLIP_LENGTH, model.config.positions)
        ids = torch.randint(config.vocab_size, (2, length), device=parts.device)
        ids[:, -1] = config.vocab_size - 1  # CLIP's end of text, where `pooled` is read
        theirs = None if peer is None else peer.encoder(config, parts.device, parts.dtype)
        yield _Stage(
            f"{name}, {config.depth} layers",
            lambda model=model, ids=ids: model(ids),
            None if theirs is None else lambda theirs=theirs, ids=ids: theirs(ids),
        )


def _loading(parts: Parts, peer: Peer | None) -> Iterator[_Stage]:
    """Reading the transformer's file, which was read before: what the disk costs is left out."""
    source, model = parts.source, parts.mmdit()
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            source = Path(folder) / "transformer.safetensors"
            tensors: dict[str, Tensor] = {MMDIT_PREFIX + key: one for key, one in model.state_dict().items()}
            save_file(tensors, source)
        where = parts.device, parts.dtype
        theirs = None if peer is None else peer.loading(model.config, *where, Path(folder))
        yield _Stage("load the transformer", lambda: load_mmdit(source, *where), theirs, counted=False)


def _importing(_: Parts, peer: Peer | None) -> Iterator[_Stage]:
    """A new Python that imports all that it takes to draw."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def importing(statement: str) -> Run:
        command = [sys.executable, "-c", statement]
        return lambda: subprocess.run(command, env=environment, check=True, capture_output=True)

    theirs = None if peer is None else importing(peer.IMPORT)
    yield _Stage("import", importing(OURS), theirs, counted=False, warm=False)


STAGES: dict[str, Callable[[Parts, Peer | None], Iterator[_Stage]]] = {
    "transformer": _transformer,
    "python": _host,
    "vae": _autoencoder,
    "text": _encoders,
    "load": _loading,
    "import": _importing,
}
"""What is measured, in turn."""
