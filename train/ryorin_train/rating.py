"""
Kahneman-Tversky optimisation (KTO) on packed ratings: https://arxiv.org/abs/2402.01306.

For answers that were found good or bad one by one, as thumbs are. What makes an answer gain is measured against how far
the model is from the reference as a whole, which is estimated from answers behind other rows' prompts (`rejected` of a
TokenRating; no gradient goes through them). Which answer stands behind which prompt is fixed for a run, so that the
reference's log-probabilities are computed once, as for DPO. Loss and gradients are those of TRL's KTOTrainer with its
loss "kto" (tests/train/test_train_kto.py).

This module imports torch and trl, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import sigmoid

from ryorin_train.packing import PackedRows
from ryorin_train.preference import ReferenceTrainer, answer_log_probs


class RatingTrainer(ReferenceTrainer):
    """ReferenceTrainer over ratings. good_weight, bad_weight: of the loss of answers that were found good or bad."""

    def __init__(self, *, good_weight: float, bad_weight: float, **kwargs: Any) -> None:
        self.good_weight, self.bad_weight = good_weight, bad_weight
        self._moved: torch.Tensor | None = None
        super().__init__(**kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """What a part adds to the mean loss of the step's ratings."""
        gained, good = self._gained(model, inputs)
        count = len(inputs["step_answers"]) // 2
        moved = self._moved if self._moved is not None else self._mean(gained[:, 1].detach().sum(), count)
        losses, told = self._judged(gained, good, moved)
        whole = len(good) == count and self.accelerator.num_processes == 1
        for name, value in told.items():
            if name != "reward_margin" or whole:  # a margin of parts is no part of a margin
                self.tell(count, **{name: value * len(good)})
        return self.of_the_step(losses.sum(), count)

    def training_step(self, model: Any, inputs: list[dict[str, Any]], num_items_in_batch: Any = None) -> torch.Tensor:
        """As of any; before a step in parts, how far the model moved is estimated from all of them."""
        self._moved = None
        if len(inputs) > 1:
            with torch.no_grad():
                found = [self._gained(model, self._prepare_inputs(part))[0][:, 1] for part in inputs]
            self._moved = torch.cat(found).mean()
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """
        Score the held-out ratings: loss; the share of good answers that gained more, and of bad ones that gained less,
        than the model moved as a whole; by how much good ones gained more than bad ones (the difference of mean
        rewards, beta times nats); and how far the model moved (kl, in nats).
        """
        assert self.held_out is not None
        found = [
            (self.gained(answer_log_probs(logits, expected), self.held_out, expected), expected.rows)
            for logits, expected in self.judged(self.held_out)
        ]
        gained = torch.cat([each for each, _ in found])
        good = _thumbs(self.held_out, [row for _, rows in found for row in rows]).to(gained.device)
        losses, told = self._judged(gained, good, gained[:, 1].mean())
        scores = {"loss": losses.mean().item(), **told}
        return {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}

    def _gained(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """What answers gained, (rows, 2), and which were found good, (rows,)."""
        logits, expected = self.answer(model, inputs)
        gained = self.gained(answer_log_probs(logits, expected), self.packed, expected)
        return gained, _thumbs(self.packed, expected.rows).to(gained.device)

    def _mean(self, total: torch.Tensor, count: int) -> torch.Tensor:
        """The mean over the step of all processes."""
        return self.accelerator.reduce(self.of_the_step(total, count), "mean")

    def _judged(
        self, gained: torch.Tensor, good: torch.Tensor, moved: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """
        The loss of each rating, (rows,), and figures.

        gained: (rows, 2), the second behind another's prompt. moved: the mean of those second ones.
        """
        moved = moved.clamp(min=0)
        over = gained[:, 0] - moved
        losses = torch.where(
            good,
            self.good_weight * (1 - sigmoid(self.beta * over)),  # eq. 8 of the paper
            self.bad_weight * (1 - sigmoid(-self.beta * over)),
        )
        told = {"reward_accuracy": ((over > 0) == good).float().mean().item(), "kl": moved.item()}
        if good.any() and not good.all():
            rewards = self.beta * gained[:, 0].detach()
            told["reward_margin"] = (rewards[good].mean() - rewards[~good].mean()).item()
        return losses, told


def _thumbs(packed: PackedRows, rows: list[int]) -> torch.Tensor:
    """Whether each of the rows was found good. Shape: (rows,), bool."""
    return torch.tensor([packed.rows[row].good for row in rows])  # type: ignore[union-attr]
