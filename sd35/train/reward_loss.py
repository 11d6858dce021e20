"""The losses of reward training, term by term as the authors' code has them.

DiffusionNFT (arXiv:2509.16117) learns on the forward process, from clean pictures of any sampler; Flow-GRPO
(arXiv:2505.05470) on the steps of a stochastic one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 5.0
"""Advantages are cut at this."""


def advantages(rewards: Tensor, prompts: Sequence[str]) -> Tensor:
    """(reward - mean of its prompt) / (deviation of its prompt + 1e-4), (B,): 0 where it is alone."""
    result = torch.zeros_like(rewards)
    for prompt in dict.fromkeys(prompts):
        own = torch.tensor([one == prompt for one in prompts], device=rewards.device)
        group = rewards[own]
        result[own] = (group - group.mean()) / (group.std(unbiased=False) + 1e-4)
    return result


def nft_loss(
    velocity: Tensor,
    old: Tensor,
    reference: Tensor,
    x: Tensor,
    data: Tensor,
    sigma: Tensor,
    advantage: Tensor,
    *,
    beta: float = 1.0,
    kl: float = 1e-4,
) -> Tensor:
    """The loss of DiffusionNFT.

        v⁺ = β v + (1 - β) v_old      v⁻ = (1 + β) v_old - β v      r = clip(A / 10 + 1/2, 0, 1)
        L(u) = mean (x - σ u - data)² / w,    w = mean |x - σ u - data| without gradient, at least 1e-5
        5 · mean[ r L(v⁺) / β + (1 - r) L(v⁻) / β ]  +  kl · mean (v - v_reference)²

    Args:
        velocity: of the network that is trained, (B, *S).
        old: of the one that drew the pictures, without gradient.
        reference: of the one that it shall not leave, without gradient.
        x: the state at sigma.
        data: the pictures' latents.
        sigma: (B,).
        advantage: (B,); cut at ±5.
        beta: how far v⁺ and v⁻ go from the old velocity.
        kl: weight of the last term.
    """
    r = (advantage.clamp(-LARGEST, LARGEST) / (2 * LARGEST) + 0.5).clamp(0, 1)
    level = sigma.view(-1, *[1] * (x.ndim - 1))

    def distance(u: Tensor) -> Tensor:
        error = (x - level * u - data).flatten(1)
        weight = error.detach().double().abs().mean(1).clamp_min(1e-5)
        return error.square().mean(1) / weight

    positive = distance(beta * velocity + (1 - beta) * old)
    negative = distance((1 + beta) * old - beta * velocity)
    policy = LARGEST * (r * positive / beta + (1 - r) * negative / beta).mean()
    return policy + kl * (velocity - reference).square().mean()


class Taken(NamedTuple):
    """A step of the stochastic sampler: its Gaussian."""

    mean: Tensor
    std: Tensor
    """Of the noise that is drawn, by √(-dt) with it: (B, 1, ...)."""
    log_prob: Tensor
    """The mean over dimensions, (B,)."""


def grpo_step(
    velocity: Tensor,
    x: Tensor,
    x_next: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    second: Tensor,
    noise: float,
) -> Taken:
    """The probability of a step of Flow-GRPO's sampler (its equation 9).

        s = a √(σ / (1 - σ)),  with the second level in place of σ = 1 under the root
        mean = x (1 + s² h / 2σ) + v (1 + s² (1 - σ) / 2σ) h,    h = σ' - σ < 0,    x' = mean + s √-h ε

    Args:
        velocity: at x, (B, *S).
        x: the state at sigma.
        x_next: where the step went.
        sigma: (B,).
        sigma_next: (B,).
        second: the second level of the schedule, ().
        noise: a.
    """
    shape = (-1, *[1] * (x.ndim - 1))
    s, h = sigma.view(shape), (sigma_next - sigma).view(shape)
    std = noise * (s / (1 - torch.where(s == 1, second, s))).sqrt()
    mean = x * (1 + std.square() / (2 * s) * h) + velocity * (1 + std.square() * (1 - s) / (2 * s)) * h
    spread = std * (-h).sqrt()
    log = -((x_next.detach() - mean).square() / (2 * spread.square())) - spread.log()
    log = log - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    return Taken(mean, std, log.flatten(1).mean(1))


def grpo_loss(
    new: Taken,
    old_log_prob: Tensor,
    reference: Taken,
    advantage: Tensor,
    *,
    clip: float = 1e-4,
    kl: float = 0.04,
) -> Tensor:
    """The clipped loss of Flow-GRPO: mean max(-A r, -A clip(r, 1 ± c)) + kl · mean (m - m_ref)² / 2 s².

    The ratio r is of mean log probabilities, hence so small a clip. The divergence is as the authors' code
    has it, without the 1 / (-h) of the Gaussians that are drawn.
    """
    ratio = torch.exp(new.log_prob - old_log_prob)
    advantage = advantage.clamp(-LARGEST, LARGEST)
    policy = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()
    if not kl:
        return policy
    divergence = ((new.mean - reference.mean).square() / (2 * new.std.square())).flatten(1).mean(1)
    return policy + kl * divergence.mean()
