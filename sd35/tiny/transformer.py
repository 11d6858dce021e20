"""Training of the embedded model's MM-DiT, together with its three text encoders.

The objective is that of the SD3 paper (arXiv:2403.03206): rectified flow with logit-normal noise
levels. The pictures are encoded once; the captions are put into words anew each time. Text
encoders of this size need no training of their own: they learn from what the MM-DiT makes of them.
"""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import trange

from flow import interpolate, sample_sigmas, target
from mmdit import MMDiT, MMDiTConfig, init_weights
from textenc import CLIP, T5, CLIPConfig, CLIPOutput, T5Config, assemble
from vae import VAE

from .autoencoder import pictures_of
from .captions import caption
from .fit import Plan, fit, save, seeded
from .scenes import Scene, training_scene
from .vocabulary import Tokenizers

MMDIT = MMDiTConfig(
    dim=192, depth=6, num_heads=3, pos_embed_size=32, context_dim=256, pooled_dim=64 + 128, dual_blocks=(0, 1)
)
SCENES = 30_000  # encoded once for a stage; two thirds of them pairs, which are harder and more varied
ENCODED = 16  # scenes encoded at a time; larger batches leave the processor's caches and are slower
DROP = 0.1  # of the captions, for guidance; and of each encoder by itself, so that one may be missing

# Most of a caption's 77 + 77 tokens are padding, and the cost of a step is their number. So the
# model learns on sequences just long enough for the batch, and gets used to the padding on the way.
FULL_LENGTH = 77
PADDED_EVERY = 8  # one batch in so many has its full length

# The flat colour of a background shows through very strong noise, so that what the text says of it has to
# be used at noise levels that the usual density hardly draws; and three channels of sixteen hold colours.
SIGMA_SHIFTS = (1.5, 8.0)  # of a batch's first and second half; bends levels upward, as `flow.sigmas` does
COLOUR_WEIGHT = 3.0  # of the errors in the first three channels, relative to the others

# The linear layers of all blocks of the MM-DiT and of the text encoders.
HIDDEN = r"\.(qkv|proj|[qkv]_proj|out_proj|SelfAttention\.[qkvo]|fc[12]|wi_[01]|wo)\.weight$"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the stages in which the transformer is trained, each from where the one before left it."""

    name: str  # of its files
    plan: Plan
    batch: int
    padded_from: int  # from this step on, every batch has its full length
    singles: float  # share of scenes with one shape
    jitter: float  # of the pictures, as a share of the usual
    muon: bool  # whether Muon trains the matrices of the blocks, which AdamW does otherwise
    number: int  # what its batches are drawn from, beside the seed


# First what words mean, on shapes that stand anywhere near their places. An edge is encoded differently
# at each offset from the latents' cells, 8 pixels wide, and is learnt exactly where the offsets are few.
DRAFT = Stage(
    name="draft",
    plan=Plan(steps=12_000, learning_rate=1e-3, warmup=300, decay=0.5, ema=0.998),
    batch=48,
    padded_from=11_600,
    singles=1 / 3,
    jitter=1.0,
    muon=False,
    number=6,
)
SETTLE = Stage(
    name="settle",
    plan=Plan(steps=2_000, learning_rate=1e-3, warmup=100, decay=0.0, ema=0.998),
    batch=32,
    padded_from=2_000,
    singles=1 / 3,
    jitter=0.25,
    muon=True,
    number=8,
)
# A shape that is alone has more places and sizes than one of a pair, and so needs to be seen more often.
FINISH = Stage(
    name="finish",
    plan=Plan(steps=6_000, learning_rate=1e-3, warmup=100, decay=1.0, ema=0.998),
    batch=32,
    padded_from=5_800,
    singles=0.6,
    jitter=0.25,
    muon=True,
    number=9,
)


class Painter(nn.Module):
    """All that is trained: text encoders and transformer, each under the name of its file."""

    def __init__(self, clip_vocabulary: int, t5_vocabulary: int, generator: torch.Generator) -> None:
        super().__init__()
        shared: dict[str, Any] = {"vocab_size": clip_vocabulary, "positions": FULL_LENGTH, "depth": 2}
        self.clip_l = CLIP(
            CLIPConfig(
                dim=64, num_heads=1, mlp_dim=256, projection_dim=None, activation="quick_gelu", **shared
            )
        )
        self.clip_g = CLIP(
            CLIPConfig(dim=128, num_heads=2, mlp_dim=512, projection_dim=128, activation="gelu", **shared)
        )
        self.t5 = T5(
            T5Config(
                vocab_size=t5_vocabulary, dim=256, depth=2, num_heads=4, head_dim=64, mlp_dim=512, buckets=32
            )
        )
        self.mmdit = MMDiT(MMDIT)
        for encoder in (self.clip_l, self.clip_g, self.t5):
            encoder.initialize(generator)
        init_weights(self.mmdit, generator)

    def encode(self, ids: Sequence[Tensor], keep: Tensor) -> tuple[Tensor, Tensor]:
        """Context and pooled vector of a batch of token ids, one tensor of them for each encoder.

        Args:
            ids: for CLIP-L, CLIP-G (B, L each) and T5 (B, L').
            keep: (3, B), 0 where an encoder's part of a caption is to be zero, 1 elsewhere.
        """
        clip_l, clip_g, t5 = self.clip_l(ids[0]), self.clip_g(ids[1]), self.t5(ids[2])
        return assemble(_masked(clip_l, keep[0]), _masked(clip_g, keep[1]), t5 * keep[2][:, None, None])


def _masked(output: CLIPOutput, keep: Tensor) -> CLIPOutput:
    """An encoder's output with zeros for the captions that it is not to tell of; keep is (B,)."""
    keep = keep.to(output.pooled.dtype)[:, None]
    return output._replace(penultimate=output.penultimate * keep[:, :, None], pooled=output.pooled * keep)


class ExplicitAttention(TorchFunctionMode):
    """Attention as two matrix products and a softmax.

    For the short sequences here and on a CPU, forward and backward take a third to a fifth of the
    time that torch's fused attention takes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `scaled_dot_product_attention`, and pass everything else on."""
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return explicit_attention(*args, **(kwargs or {}))


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """What `torch.nn.functional.scaled_dot_product_attention` computes, for the arguments used here."""
    logits = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if attn_mask is not None:
        logits = logits + attn_mask
    if is_causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(later, float("-inf"))
    return logits.softmax(dim=-1) @ v


def train_painter(
    vae: VAE, tokenizers: Tokenizers, folder: Path, *, seed: int, device: torch.device
) -> Painter:
    """Train the transformer and the text encoders on latents of this autoencoder."""
    painter = Painter(tokenizers.clip_size, tokenizers.t5_size, seeded(seed, 4)).to(device)
    for stage in (DRAFT, SETTLE, FINISH):
        train_stage(painter, stage, vae, tokenizers, folder, seed=seed, device=device)
    return painter


def train_stage(
    painter: Painter,
    stage: Stage,
    vae: VAE,
    tokenizers: Tokenizers,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
) -> None:
    """Train a painter, in place, through one stage, at the end of which it is the average over it."""
    worker = deepcopy(painter).bfloat16()
    path = folder / f"latents_{stage.jitter:g}.safetensors"
    scenes, latents = encoded_scenes(vae, path, jitter=stage.jitter, seed=seed, device=device)

    def loss_at(step: int) -> Tensor:
        generator = seeded(seed, stage.number, step)
        chosen = _chosen(stage, generator)
        data = latents[chosen].float()
        texts = [caption(scenes[i], generator) for i in chosen.tolist()]
        texts = [
            text if kept else "" for text, kept in zip(texts, _kept(stage.batch, generator), strict=True)
        ]
        keep = torch.stack([_kept(stage.batch, generator) for _ in range(3)])
        is_padded = step >= stage.padded_from or step % PADDED_EVERY == 0
        ids = tokenizers.encode(texts, length=FULL_LENGTH if is_padded else None)
        sigma = torch.cat(
            [sample_sigmas(stage.batch // 2, generator, schedule_shift=shift) for shift in SIGMA_SHIFTS]
        )
        noise = torch.randn(data.shape, generator=generator)
        data, noise, sigma = data.to(device), noise.to(device), sigma.to(device)
        with ExplicitAttention():
            context, pooled = worker.encode([part.to(device) for part in ids], keep.to(device))
            velocity = worker.mmdit(interpolate(data, noise, sigma), sigma, context, pooled)
        error = (velocity - target(data, noise)).square().mean(dim=(0, 2, 3))
        weight = torch.ones_like(error)
        weight[:3] = COLOUR_WEIGHT
        return (weight * error).sum() / weight.sum()

    average = fit(
        painter,
        loss_at,
        stage.plan,
        folder / f"{stage.name}.safetensors",
        seed=seed,
        label=stage.name,
        worker=worker,
        is_hidden=is_hidden if stage.muon else None,
    )
    painter.load_state_dict(average.state_dict())


def is_hidden(name: str) -> bool:
    """Whether a painter's parameter of this name is a matrix of a block's attention or MLP."""
    return re.search(HIDDEN, name) is not None and "embedder" not in name


@torch.no_grad()
def encoded_scenes(
    vae: VAE, path: Path, *, jitter: float, seed: int, device: torch.device
) -> tuple[list[Scene], Tensor]:
    """The scenes to train on and their latents, (SCENES, 16, 16, 16) in float16; kept at `path`."""
    generator = seeded(seed, 5)
    scenes = [training_scene(generator, shapes=1 if i % 3 == 0 else 2) for i in range(SCENES)]
    if path.exists():
        with safe_open(path, framework="pt") as file:
            return scenes, file.get_tensor("latents")
    parts = []
    # A quarter faster on a CPU. (torch's stubs do not know this argument of Module.to.)
    vae = vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for start in trange(0, SCENES, ENCODED, desc="latents"):
        image = pictures_of(scenes[start : start + ENCODED], seeded(seed, 5, start), device, jitter)
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            parts.append(vae.encode(image).half().cpu().contiguous())
    latents = torch.cat(parts)
    save({"latents": latents}, path)
    return scenes, latents


def _chosen(stage: Stage, generator: torch.Generator) -> Tensor:
    """The numbers of a batch of scenes, of which every third has one shape: (batch,)."""
    is_single = torch.rand(stage.batch, generator=generator) < stage.singles
    third = torch.randint(SCENES // 3, (stage.batch,), generator=generator)
    pair = torch.randint(1, 3, (stage.batch,), generator=generator)
    return 3 * third + torch.where(is_single, 0, pair)


def _kept(number: int, generator: torch.Generator) -> Tensor:
    """Which of `number` captions, or parts of one, are not dropped."""
    return torch.rand(number, generator=generator) >= DROP
