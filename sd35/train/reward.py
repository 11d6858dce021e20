"""Reward training: move a model toward pictures that a judge likes, by DiffusionNFT or Flow-GRPO."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import flow
from flow import interpolate

from ..noise import draw_noise, generators, seeded
from .objective import LEVEL, NOISE
from .reward_loss import Taken, advantages, grpo_loss, grpo_step, nft_loss

Reward = Callable[[Tensor, Sequence[str]], Tensor]
"""reward(images (B, 3, H, W) in [-1, 1], prompts) -> (B,), larger is better."""


def old_decay(step: int) -> float:
    """How much of the old policy stays after an optimizer step: min(0.001 n, 0.5)."""
    return min(0.001 * step, 0.5)


def train_nft(
    pipe: Any,
    parameters: Mapping[str, nn.Parameter],
    prompts: Sequence[str],
    reward: Reward,
    *,
    rounds: int,
    groups: int = 1,
    pictures: int = 8,
    steps: int = 10,
    guidance_scale: float = 1.0,
    learning_rate: float = 3e-4,
    beta: float = 1.0,
    kl: float = 1e-4,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
) -> None:
    """Train what is on a pipeline toward a reward, by DiffusionNFT.

    A round draws `pictures` of each of some prompts by the old policy, judges them, and takes one step on
    all of them. Those of one prompt are looked at together, at one of the sampler's levels and with one
    noise: what errors they have in common cancels then, since advantages add up to zero. The authors train
    without guidance. With it, the policy is the guided velocity, which then is what the loss looks at, and
    both of its halves learn.

    Args:
        pipe: a `Pipeline` with a LoRA that `fresh_lora` has put on it.
        parameters: of that LoRA. Zeroed, they are the reference policy.
        prompts: taken in turn.
        reward: the judge.
        rounds: how many.
        groups: prompts of a round.
        pictures: of one prompt.
        steps: of the sampler, Euler's.
        guidance_scale: of the policy; 1 is none.
        learning_rate: of AdamW.
        beta: see `nft_loss`.
        kl: likewise.
        seed: of everything that is drawn.
        watch: called with the round and its mean reward.
    """
    optimizer = torch.optim.AdamW([*parameters.values()], lr=learning_rate, weight_decay=0.0)
    old = {name: one.detach().clone() for name, one in parameters.items()}
    start = {name: one.detach().clone() for name, one in parameters.items()}
    sigmas = flow.sigmas(steps)
    shape = pipe.latents_shape(None, None)
    uncond = _conditional(pipe, "", pictures)

    def group_loss(number: int) -> tuple[Tensor, float]:
        """The loss on pictures of one prompt, divided by the groups of a round, and their mean reward."""
        prompt = prompts[number % len(prompts)]
        noise = draw_noise(generators(range(seed + number * pictures, seed + (number + 1) * pictures)), shape)
        velocity = flow.guided(_conditional(pipe, prompt, pictures), uncond, guidance_scale)
        with policy(parameters, old):
            data = flow.solve(velocity, noise.to(pipe.device), sigmas)
            scores = reward(pipe.decode(data).cpu(), [prompt] * pictures).double()
        advantage = advantages(scores, [prompt] * pictures).to(data)
        place = torch.randint(steps, (1,), generator=seeded(seed, LEVEL, number))
        sigma = sigmas[place].to(data).expand(pictures)
        noise = torch.randn(data[:1].shape, generator=seeded(seed, NOISE, number)).to(data)
        x = interpolate(data, noise.expand_as(data), sigma)
        with policy(parameters, old):
            v_old = velocity(x, sigma)
        with policy(parameters, start):
            v_reference = velocity(x, sigma)
        loss = nft_loss(velocity(x, sigma), v_old, v_reference, x, data, sigma, advantage, beta=beta, kl=kl)
        return loss / groups, float(scores.mean())

    for number in range(rounds):
        optimizer.zero_grad()
        scores = []
        for group in range(groups):
            loss, score = group_loss(number * groups + group)
            loss.backward()
            scores.append(score)
        if watch is not None:
            watch(number, sum(scores) / groups)
        nn.utils.clip_grad_norm_([*parameters.values()], 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, value in old.items():
                value.lerp_(parameters[name], 1 - old_decay(number + 1))


def train_grpo(
    pipe: Any,
    parameters: Mapping[str, nn.Parameter],
    prompts: Sequence[str],
    reward: Reward,
    *,
    rounds: int,
    pictures: int = 8,
    steps: int = 10,
    noise_level: float = 0.7,
    learning_rate: float = 3e-4,
    clip: float = 1e-4,
    kl: float = 0.04,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
) -> None:
    """Train what is on a pipeline toward a reward, by Flow-GRPO, without guidance.

    A round draws `pictures` of one prompt by the stochastic sampler, judges them, and takes one step on all
    steps of that sampler.

    Args:
        pipe: as in `train_nft`, like all that is not below.
        parameters: likewise.
        prompts: likewise.
        reward: likewise.
        rounds: likewise.
        pictures: likewise.
        steps: of the sampler.
        noise_level: of the sampler; see `grpo_step`.
        learning_rate: likewise.
        clip: see `grpo_loss`.
        kl: likewise.
        seed: likewise.
        watch: likewise.
    """
    optimizer = torch.optim.AdamW([*parameters.values()], lr=learning_rate, weight_decay=0.0)
    start = {name: one.detach().clone() for name, one in parameters.items()}
    sigmas, shape = flow.sigmas(steps).to(pipe.device), pipe.latents_shape(None, None)
    for number in range(rounds):
        prompt = prompts[number % len(prompts)]
        text = pipe.encode_prompt(prompt)
        context, pooled = text.context.expand(pictures, -1, -1), text.pooled.expand(pictures, -1)
        seeds = range(seed + number * pictures, seed + (number + 1) * pictures)
        x, source = draw_noise(generators(seeds), shape).to(pipe.device), seeded(seed, NOISE, number)

        def taken(
            x: Tensor, x_next: Tensor, step: int, context: Tensor = context, pooled: Tensor = pooled
        ) -> Taken:
            level, following = (sigmas[step + k].expand(pictures) for k in (0, 1))
            velocity = pipe.mmdit(x, level, context, pooled)
            return grpo_step(velocity, x, x_next, level, following, sigmas[1], noise_level)

        walk = []
        with torch.no_grad():
            for step in range(steps):
                draw = torch.randn(x.shape, generator=source).to(x)
                gaussian = taken(x, x, step)
                following = gaussian.mean + gaussian.std * (sigmas[step] - sigmas[step + 1]).sqrt() * draw
                walk.append((x, following, taken(x, following, step).log_prob))
                x = following
            scores = reward(pipe.decode(x).cpu(), [prompt] * pictures).double()
        advantage = advantages(scores, [prompt] * pictures).to(x)
        if watch is not None:
            watch(number, float(scores.mean()))
        optimizer.zero_grad()
        for step, (before, after, log_prob) in enumerate(walk):
            with policy(parameters, start):
                reference = taken(before, after, step)
            loss = grpo_loss(taken(before, after, step), log_prob, reference, advantage, clip=clip, kl=kl)
            (loss / steps).backward()
        nn.utils.clip_grad_norm_([*parameters.values()], 1.0)
        optimizer.step()


def _conditional(pipe: Any, prompt: str, pictures: int) -> flow.Velocity:
    """The velocity of a batch with one prompt."""
    text = pipe.encode_prompt(prompt)
    context, pooled = text.context.expand(pictures, -1, -1), text.pooled.expand(pictures, -1)
    return lambda x, sigma: pipe.mmdit(x, sigma, context, pooled)


@contextmanager
def policy(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a network compute without gradients and with other values of its parameters inside this block."""
    kept = {name: one.detach().clone() for name, one in parameters.items()}
    with torch.no_grad():
        for name, one in parameters.items():
            one.copy_(values[name])
        yield
        for name, one in parameters.items():
            one.copy_(kept[name])
