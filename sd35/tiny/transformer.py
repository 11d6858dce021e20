"""Training of the embedded model's MM-DiT, together with its three text encoders.

The objective is that of the SD3 paper (arXiv:2403.03206): rectified flow with logit-normal noise
levels. Latents of many pictures are kept at hand and renewed little by little; each is met under
several captions and with ever new noise.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from flow import interpolate, sample_sigmas, target
from mmdit import MMDiT
from vae import SCALE, SHIFT, VAE

from ..noise import seeded
from .autoencoder import CONFIG, NOISE
from .bank import CAPTIONS, LENGTH, Bank
from .fit import Plan, Run, Trainer
from .painter import POSITIONS, Painter
from .painting import paint_at_random
from .vocabulary import Tokenizers

PLAN = Plan(learning_rate=2e-3, warmup=0.03, decay=0.4, ema=0.998)
RESUMED = Plan(learning_rate=1e-3, warmup=0.05, decay=0.8, ema=0.998)  # of one that has learnt already
JITTER = 0.25  # an edge is encoded anew at each offset from the latents' cells: few are learnt exactly
DROP = 0.1  # of the captions, for guidance; and of each encoder by itself, so that one may be missing

# Most of a caption's 77 + 77 tokens are padding, and the cost of a step is their number. So the model learns
# on sequences just long enough, and gets used to the padding on the way and at the end.
SHORT, PADDED, LONG = (LENGTH, LENGTH), (POSITIONS, 77), (POSITIONS, 256)  # tokens of CLIP and of T5
PADDED_EVERY, LONG_EVERY = 8, 40  # one batch in so many
RENEW_EVERY = 8  # steps, for more pictures at a time
FILL_SHARE = 0.15  # of the time that is left, at most, for encoding pictures before the first step
PADDED_FROM = 0.92  # share of the time from which on no batch is short

# What kind of shape it is, and its flat colours, is decided near pure noise, at levels that the usual density
# hardly draws; so most of a batch is drawn with its levels bent upward, as `flow.sigmas` does, and a part
# where the first step of every schedule is.
SIGMA_SHIFTS = (1.5, 8.0)
FIRST_SHARE, FIRST_FROM = 0.1, 0.95

# The linear layers of all blocks of the MM-DiT and of the text encoders.
HIDDEN = r"\.(qkv|proj|[qkv]_proj|out_proj|SelfAttention\.[qkvo]|fc[12]|wi_[01]|wo)\.weight$"


@dataclass
class Batch:
    """What a step sees."""

    data: Tensor  # latents, (B, 16, 16, 16)
    noise: Tensor
    sigma: Tensor  # (B,)
    ids: tuple[Tensor, Tensor, Tensor]  # CLIP-L's, CLIP-G's and T5's
    keep: Tensor  # (3, B), which encoders tell of the caption


class Latents:
    """Latents of the scenes in a bank: row i is of a picture of scene i, renewed in turn."""

    def __init__(self, bank: Bank, encoder: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
        self.bank, self.encoder, self.generator = bank, encoder, generator
        shape = (bank.capacity, CONFIG.latent_channels, 16, 16)
        self.values = torch.zeros(shape, dtype=torch.float16, device=generator.device)
        self.filled = self.next = 0

    @torch.no_grad()
    def renew(self, number: int) -> None:
        """Paint and encode the next `number` scenes, first those that have no latents yet."""
        start = 0 if self.next >= len(self.bank) else self.next
        rows = slice(start, min(start + number, len(self.bank)))
        image = paint_at_random(self.bank.tables[rows], self.generator, jitter=JITTER)
        self.values[rows] = self.encoder(image).half()
        self.next = rows.stop
        self.filled = max(self.filled, rows.stop)

    def fill(self, number: int, until: float, left: Callable[[], float]) -> None:
        """Encode the first `number` scenes as they are drawn, or as many as there is time for.

        Args:
            number: of scenes; the first 256, or all where there are fewer, are encoded in any case.
            until: what is left when time is over.
            left: seconds until the run's end.
        """
        number = min(number, self.bank.capacity)
        while self.filled < number and (not self.filled or left() > until):
            more = min(self.filled + 256, number)
            self.bank.fill(more)  # waits for them
            if self.filled >= len(self.bank):  # drawing ended early
                break
            self.renew(more - self.filled)


def train_painter(
    run: Run,
    painter: Painter,
    vae: VAE,
    bank: Bank,
    tokenizers: Tokenizers,
    *,
    plan: Plan,
    batch: int,
    fill: int,
    renew: int,
    seed: int,
    until: float,
    watch: Callable[[Trainer], None],
    compiled: bool,
) -> None:
    """Train a painter, in place, on latents of this autoencoder.

    Args:
        run: the clock and the log.
        painter: from where it is.
        vae: whose latents it learns.
        bank: scenes and captions.
        tokenizers: those that the bank's captions were read with.
        plan: PLAN, or RESUMED.
        batch: captions of a step.
        fill: pictures that are encoded before the first step, and before its time counts.
        renew: pictures that are encoded anew, for each step.
        seed: of pictures and noise.
        until: seconds before the run's end at which to be done.
        watch: told of the trainer, for what is saved on the way.
        compiled: whether to compile the MM-DiT's blocks.
    """
    device = bank.tables.device
    generator = seeded(seed, 2, device=device)
    latents = Latents(bank, half_encoder(vae), generator)
    latents.fill(fill, run.left() - FILL_SHARE * (run.left() - until), run.left)
    run.say(f"{latents.filled} pictures encoded, {len(bank)} scenes with {CAPTIONS} captions each drawn")

    trainer = Trainer(painter, plan, is_hidden)
    watch(trainer)
    worker = trainer.worker
    assert isinstance(worker, Painter)
    if compiled:
        compile_blocks(worker.mmdit)
    losses = {name: torch.zeros((), device=device) for name in ("loss", "at pure noise")}
    for share in run.stage("transformer", until, examples=batch, losses=losses, trainer=trainer):
        bank.fill()
        if trainer.steps % RENEW_EVERY == 0:
            latents.renew(RENEW_EVERY * renew)
        drawn = draw_batch(latents, tokenizers, batch, lengths_at(trainer.steps, share), generator)
        try:
            _backward(worker, drawn, losses)
        except Exception as error:  # whatever a compiler may fail by, the training goes on without
            if not compiled:
                raise
            compiled = False
            run.say(f"blocks are not compiled: {type(error).__name__}: {str(error)[:300]}")
            for block in worker.mmdit.joint_blocks:
                block._compiled_call_impl = None
            worker.zero_grad(set_to_none=True)
            _backward(worker, drawn, losses)
        trainer.step(share)
    trainer.finish()


def lengths_at(step: int, share: float) -> tuple[int, int]:
    """Tokens of CLIP and T5 in a step."""
    if step % LONG_EVERY == LONG_EVERY - 1:
        return LONG
    return PADDED if share > PADDED_FROM or step % PADDED_EVERY == PADDED_EVERY - 1 else SHORT


def compile_blocks(model: MMDiT) -> None:
    """Have torch compile each joint block at its first use, and anew for each length of the context."""
    config = torch._dynamo.config
    for name in ("recompile_limit", "cache_size_limit"):  # what this torch calls it
        if hasattr(config, name):
            setattr(config, name, 64)
    for block in model.joint_blocks:
        block.compile(dynamic=False)


def half_encoder(vae: VAE) -> Callable[[Tensor], Tensor]:
    """Images to latents, computed in bfloat16."""
    on_card = next(vae.parameters()).device.type == "cuda"
    layout = torch.channels_last if on_card else torch.preserve_format
    encoder = deepcopy(vae.encoder).bfloat16().requires_grad_(False)
    encoder = encoder.to(memory_format=layout)  # pyright: ignore[reportCallIssue]

    def encode(image: Tensor) -> Tensor:
        mean = encoder(image.bfloat16())[:, : CONFIG.latent_channels].float()
        return (mean - SHIFT) * SCALE

    return encode


def draw_batch(
    latents: Latents,
    tokenizers: Tokenizers,
    number: int,
    lengths: tuple[int, int],
    generator: torch.Generator,
) -> Batch:
    """Latents with captions, noise and noise levels."""
    device, bank = generator.device, latents.bank
    chance = {"generator": generator, "device": device}
    rows = torch.randint(latents.filled, (number,), **chance)
    which = torch.randint(CAPTIONS, (number,), **chance)
    dropped = torch.rand(number, **chance) < DROP
    ids = padded_ids(bank.clip[rows, which], bank.t5[rows, which], dropped, tokenizers, lengths)
    data = latents.values[rows].float()
    # The posterior's noise, which the autoencoder was taught to keep in a picture.
    data = data + NOISE * torch.randn(data.shape, **chance)
    first = max(1, int(FIRST_SHARE * number))
    half = (number - first) // 2
    low, high = SIGMA_SHIFTS
    sigma = torch.cat(
        [
            FIRST_FROM + (1 - FIRST_FROM) * torch.rand(first, **chance),
            sample_sigmas(half, generator, schedule_shift=low),
            sample_sigmas(number - first - half, generator, schedule_shift=high),
        ]
    )
    keep = torch.rand(3, number, **chance) >= DROP
    return Batch(data, torch.randn(data.shape, **chance), sigma, ids, keep)


def padded_ids(
    clip: Tensor, t5: Tensor, dropped: Tensor, tokenizers: Tokenizers, lengths: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of CLIP-L, CLIP-G and T5 at these lengths, of the empty text where a caption is dropped.

    Args:
        clip: CLIP-G's, (B, LENGTH).
        t5: T5's, likewise.
        dropped: (B,).
        tokenizers: for the ids of pads and ends.
        lengths: of CLIP and of T5.
    """
    start, end, pad = tokenizers.clip_g.start.id, tokenizers.clip_g.end.id, tokenizers.clip_g.pad.id
    t5_end, t5_pad = tokenizers.t5.end.id, tokenizers.t5.pad.id
    clip_g = _lengthened(clip.long(), lengths[0], pad)
    clip_g = torch.where(dropped[:, None], _row([start, end], lengths[0], pad, clip_g), clip_g)
    read = _lengthened(t5.long(), lengths[1], t5_pad)
    read = torch.where(dropped[:, None], _row([t5_end], lengths[1], t5_pad, read), read)
    position = torch.arange(lengths[0], device=clip.device)
    after = position > clip_g.argmax(dim=1)[:, None]  # the end has the largest id
    return torch.where(after, tokenizers.clip_l.pad.id, clip_g), clip_g, read


def is_hidden(name: str) -> bool:
    """Whether a painter's parameter of this name is a matrix of a block's attention or MLP."""
    return re.search(HIDDEN, name) is not None and "embedder" not in name


def loss_of(worker: Painter, batch: Batch) -> Tensor:
    """The squared error of the velocity of each sample, (B,)."""
    context, pooled = worker.encode(batch.ids, batch.keep)
    x = interpolate(batch.data, batch.noise, batch.sigma)
    velocity = worker.mmdit(x, batch.sigma, context, pooled)
    return (velocity - target(batch.data, batch.noise)).square().mean(dim=(1, 2, 3))


def _backward(worker: Painter, batch: Batch, losses: dict[str, Tensor]) -> None:
    error = loss_of(worker, batch)
    error.mean().backward()
    first = max(1, int(FIRST_SHARE * len(error)))
    losses["loss"] = error.detach().mean()
    losses["at pure noise"] = error.detach()[:first].mean()


def _lengthened(ids: Tensor, length: int, pad: int) -> Tensor:
    """Rows with pads behind, as long as is asked."""
    return torch.nn.functional.pad(ids, (0, length - ids.shape[1]), value=pad)


def _row(ids: list[int], length: int, pad: int, like: Tensor) -> Tensor:
    """One row of ids and pads."""
    row = torch.full((length,), pad, dtype=like.dtype, device=like.device)
    for position, value in enumerate(ids):
        row[position] = value
    return row
