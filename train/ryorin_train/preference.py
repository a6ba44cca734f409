"""
Direct preference optimisation (DPO) on packed pairs: https://arxiv.org/abs/2305.18290.

The reference is what the run starts from, the base model or an earlier adapter. Its log-probabilities never change, so
they are computed once, before the first step, and the lower layers, which both share, once for both. A pair's prompt is
computed once for its two answers. Loss and gradients are those of TRL's DPOTrainer with its loss "sigmoid"
(tests/train/test_train_preference.py); TRL's own pads both answers with the prompt before each.

This module imports torch and trl, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import logsigmoid

from ryorin_train.packing import Expected, PackedRows
from ryorin_train.trainer import PackedTrainer


class Preferences(NamedTuple):
    """
    Of the P pairs of a batch: how much more likely than by the reference their answers are.

    chosen, rejected: (P,) in nats. loss: (P,) -log sigmoid of beta times their difference.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    loss: torch.Tensor


class ReferenceTrainer(PackedTrainer):
    """
    PackedTrainer over rows of two answers, which it measures against a reference: the model with its first weights.

    beta: how strongly the reference holds.
    """

    def __init__(self, *, beta: float, **kwargs: Any) -> None:
        self.beta = beta
        super().__init__(**kwargs)

    def prepare(self) -> None:
        """Compute the reference's log-probabilities with the first weights."""
        for packed in filter(None, (self.packed, self.held_out)):
            reference = torch.zeros(len(packed.rows), 2)
            for logits, expected in self.judged(packed):
                reference[expected.rows] = answer_log_probs(logits, expected).view(-1, 2).cpu()
            packed.reference = reference

    def gained(self, log_probs: torch.Tensor, packed: PackedRows, expected: Expected) -> torch.Tensor:
        """How much more likely than by the reference the answers of a batch's rows are, in nats. Shape: (rows, 2)."""
        return log_probs.view(-1, 2) - packed.reference[expected.rows].to(log_probs.device)


class PreferenceTrainer(ReferenceTrainer):
    """
    ReferenceTrainer over preference pairs.

    chosen_weight: of the chosen answers' mean cross-entropy, which is added to the loss and keeps them likely in
    themselves (https://arxiv.org/abs/2404.19733, eq. 1); 0 for plain DPO.
    """

    def __init__(self, *, chosen_weight: float, **kwargs: Any) -> None:
        self.chosen_weight = chosen_weight
        super().__init__(**kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """What a part adds to the mean loss of the step's pairs."""
        logits, expected = self.answer(model, inputs)
        log_probs = answer_log_probs(logits, expected)
        found = self._preferences(log_probs, self.packed, expected)
        margins = (found.chosen - found.rejected).detach()
        chosen_answers = expected.step_answers[0::2]
        pairs = len(chosen_answers)
        self.tell(
            pairs,
            reward_accuracy=(margins > 0).sum().item(),
            reward_margin=self.beta * margins.sum().item(),
        )
        loss = self.of_the_step(found.loss.sum(), pairs)
        if self.chosen_weight:
            loss = loss - self.of_the_step(self.chosen_weight * log_probs[0::2].sum(), sum(chosen_answers))
        return loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """
        Score the held-out pairs: loss, the share whose chosen answer gained more than the rejected one, and by how much
        (the difference of rewards, beta times nats).
        """
        assert self.held_out is not None
        found = [
            self._preferences(answer_log_probs(logits, expected), self.held_out, expected)
            for logits, expected in self.judged(self.held_out)
        ]
        margins = torch.cat([each.chosen - each.rejected for each in found])
        return {
            f"{metric_key_prefix}_loss": torch.cat([each.loss for each in found]).mean().item(),
            f"{metric_key_prefix}_reward_accuracy": (margins > 0).float().mean().item(),
            f"{metric_key_prefix}_reward_margin": self.beta * margins.mean().item(),
        }

    def _preferences(self, log_probs: torch.Tensor, packed: PackedRows, expected: Expected) -> Preferences:
        chosen, rejected = self.gained(log_probs, packed, expected).unbind(1)
        return Preferences(chosen, rejected, -logsigmoid(self.beta * (chosen - rejected)))


def answer_log_probs(logits: torch.Tensor, expected: Expected) -> torch.Tensor:
    """
    The log-probability of each answer, the sum of its tokens', in nats. Shape: (answers,).

    logits: (L, vocabulary), float32.
    """
    of_tokens = logits.gather(1, expected.targets[:, None])[:, 0] - logits.logsumexp(-1)
    return torch.stack([piece.sum() for piece in of_tokens.split(expected.answers)])
