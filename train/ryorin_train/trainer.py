"""
TRL's SFTTrainer on packed batches.

TRL and transformers keep the optimizer, the schedule, clipping, mixed precision and the loop; this class gives them
batches by tokens (packing.py) and a loss over the learned tokens alone. TRL's own fused head would, on a CPU, compute
the logits of every token.

This module imports torch and trl, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from trl import SFTTrainer

from ryorin_train.packing import PackedRows, TokenBatches


class PackedTrainer(SFTTrainer):
    """
    SFTTrainer whose datasets are row numbers.

    packed, held_out: the collators of both sets of rows; `batch_tokens`: the size of a step.
    """

    def __init__(
        self, *, packed: PackedRows, held_out: PackedRows | None, batch_tokens: int, seed: int, **kwargs: Any
    ) -> None:
        self.packed = packed
        self.held_out = held_out
        self.batch_tokens = batch_tokens
        self.order_seed = seed
        super().__init__(**kwargs)

    def get_train_dataloader(self) -> Any:
        """Batches of the training rows, in an order of their own each epoch."""
        batches = TokenBatches(self.packed.lengths, self.batch_tokens, self.order_seed)
        loader = DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.packed)
        return self.accelerator.prepare(loader)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy of the learned tokens, in nats."""
        loss, right, _ = self._score(model, inputs)
        count = len(right)
        self._metrics["train"]["mean_token_accuracy"].append(right.float().mean().item())
        return loss / count

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """
        Score the held-out rows: loss (nats a token), the share of tokens and of whole answers that the model would have
        chosen itself, each given the right tokens before it.
        """
        assert self.held_out is not None
        self.model.eval()
        total, tokens, tokens_right, answers_right = 0.0, 0, 0, 0
        for numbers in TokenBatches(self.held_out.lengths, self.batch_tokens, seed=None):
            batch = self._prepare_inputs(self.held_out.batch(numbers))
            with torch.no_grad():
                loss, right, learned = self._score(self.model, batch, [self.held_out.rows[n].learned for n in numbers])
            total += loss.item()
            tokens += len(right)
            tokens_right += int(right.sum())
            answers_right += sum(bool(piece.all()) for piece in right.split(learned))
        self.model.train()
        metrics = {
            f"{metric_key_prefix}_loss": total / tokens,
            f"{metric_key_prefix}_token_accuracy": tokens_right / tokens,
            f"{metric_key_prefix}_answer_accuracy": answers_right / len(self.held_out.rows),
        }
        return metrics

    def _score(
        self, model: Any, inputs: dict[str, Any], masks: list[tuple[bool, ...]] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """(summed loss, whether each learned token is the likeliest (L,), learned tokens of each row)."""
        targets = inputs["targets"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "targets"}, use_cache=False)
        logits = outputs.logits[0].float()
        loss = cross_entropy(logits, targets, reduction="sum")
        return loss, logits.detach().argmax(-1) == targets, [sum(mask) for mask in masks or ()]
