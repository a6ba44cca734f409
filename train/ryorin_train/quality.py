"""
Which of two scorings of the held-out rows is the better one: what early stopping and a sweep go by.

Not the loss first. `answer_accuracy` is the share of held-out answers that the model would give word for word: where
every token is the likeliest after the right ones before it, greedy generation gives just that answer, so nothing needs
to be generated for it. Where wordings are free it stays at nothing for all, and `token_accuracy` decides; the loss only
where those are equal, since it grows with overconfidence while answers still get better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HIGHER_IS_BETTER = (
    "held_out_reward",
    "held_out_answer_accuracy",
    "held_out_reward_accuracy",
    "held_out_token_accuracy",
)
LOSS = "held_out_loss"


def quality(scores: Mapping[str, float]) -> tuple[float, ...]:
    """What is compared of held-out scores: the greater, the better. Two of the same method have the same parts."""
    parts = [scores[name] for name in HIGHER_IS_BETTER if name in scores]
    return (*parts, -scores[LOSS]) if LOSS in scores else tuple(parts)


def deciding(scores: Mapping[str, float]) -> str:
    """The name of what is compared first."""
    return next((name for name in HIGHER_IS_BETTER if name in scores), LOSS)


def best_of(scored: Sequence[Mapping[str, Any]]) -> int | None:
    """The place of the best scores, the first of equal ones; None when there are none."""
    return max(range(len(scored)), key=lambda place: (quality(scored[place]), -place), default=None)
