"""
Grades to a loss: group relative policy optimisation, GRPO (https://arxiv.org/abs/2402.03300).

An answer's advantage is its grade against those of the other answers to the same prompt, so no model of values is
trained; of RLOO (https://arxiv.org/abs/2402.14740), which does so too, GRPO also has the clipped ratio that lets
answers be learned from more than once. Each token counts alike, whichever answer it is in
(https://arxiv.org/abs/2503.14476, eq. 8), since a mean an answer would favour long wrong ones; what holds to the start
is weighed by the ratio too, which makes its gradient unbiased (https://arxiv.org/abs/2512.02556). All are TRL's
defaults, and loss and gradients are those of its GRPOTrainer (tests/train/test_train_reinforcement.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

EVEN = 1e-4
"""Added to a group's deviation, as in TRL."""


class PolicyLoss(NamedTuple):
    """
    Of L tokens. loss: their sum over all tokens of the step. kl: (L,), in nats, above 0. clipped: (L,), whether a token
    has moved as far as one step may take it.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    clipped: torch.Tensor


def advantages(grades: torch.Tensor) -> torch.Tensor:
    """Each grade against its group, in the group's deviations. Shape: (groups, answers), both ways."""
    spread = grades.std(1, keepdim=True)
    return (grades - grades.mean(1, keepdim=True)) / (spread + EVEN)


def has_spread(grades: torch.Tensor) -> torch.Tensor:
    """Whether a group's answers got differing grades; there is nothing to learn otherwise. Shape: (groups,), bool."""
    return ~torch.isclose(grades.std(1), torch.zeros(()))


def policy_loss(
    log_probs: torch.Tensor,
    before: torch.Tensor,
    reference: torch.Tensor,
    advantage: torch.Tensor,
    *,
    tokens: int,
    epsilon: float,
    beta: float,
) -> PolicyLoss:
    """
    The loss of L tokens of a step that has `tokens`.

    log_probs, before, reference: (L,), of the model as it is, as it was when the answers were taken, and as the run
    started. advantage: (L,), of each token's answer.
    """
    ratio = (log_probs - before).exp()
    clipped_ratio = ratio.clamp(1 - epsilon, 1 + epsilon)
    each = -torch.minimum(ratio * advantage, clipped_ratio * advantage)
    further = reference - log_probs
    kl = further.exp() - further - 1  # http://joschu.net/blog/kl-approx.html, k3
    if beta:
        each = each + beta * kl * ratio
    clipped = ((ratio < 1 - epsilon) & (advantage < 0)) | ((ratio > 1 + epsilon) & (advantage > 0))
    return PolicyLoss(each.sum() / tokens, kl.detach(), clipped)
