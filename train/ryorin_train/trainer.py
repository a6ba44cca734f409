"""
TRL's SFTTrainer on packed batches.

TRL and transformers keep the optimizer, the schedule, clipping, mixed precision and the loop; this class gives them
batches by tokens (packing.py) and a loss over the learned tokens alone. TRL's own fused head would, on a CPU, compute
the logits of every token.

This module imports torch and trl, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer
from trl import SFTTrainer

from ryorin_train.packing import Expected, PackedRows, TokenBatches, expected_of


class PackedTrainer(SFTTrainer):
    """
    SFTTrainer whose datasets are row numbers.

    packed, held_out: both sets of rows. batch_tokens: the size of a step. part_tokens: how much of it is computed at
    once; gradients add up over its parts, so that a step of any size takes the memory of one part.
    saving: what a checkpoint of a step is written in.
    """

    def __init__(
        self,
        *,
        packed: PackedRows,
        held_out: PackedRows | None,
        batch_tokens: int,
        part_tokens: int,
        seed: int,
        **kwargs: Any,
    ) -> None:
        self.packed = packed
        self.held_out = held_out
        self.batch_tokens = batch_tokens
        self.part_tokens = part_tokens
        self.saving: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()
        self.order_seed = seed
        super().__init__(**kwargs)

    def get_train_dataloader(self) -> Any:
        """Steps of the training rows, in an order of their own each epoch."""
        steps = TokenBatches(self.packed.lengths, self.batch_tokens, self.order_seed)
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=steps,
            collate_fn=lambda features: self.packed.step([feature["row"] for feature in features], self.part_tokens),
        )
        return self.accelerator.prepare(loader)

    def prepare(self) -> None:
        """Called once, with the first weights in place and the lower layers skipped, before training begins."""

    def training_step(self, model: Any, inputs: list[dict[str, Any]], num_items_in_batch: Any = None) -> torch.Tensor:
        """The gradients of a step, one part after the other; returns its loss."""
        loss = torch.zeros((), device=self.args.device)
        for part in inputs:
            loss += super().training_step(model, part, num_items_in_batch)
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """What a part adds to the mean cross-entropy of the step's learned tokens, in nats."""
        logits, expected = self.answer(model, inputs)
        tokens = sum(expected.step_answers)
        right = logits.detach().argmax(-1) == expected.targets
        self.measured("mean_token_accuracy", right.sum().item() / tokens)
        return cross_entropy(logits, expected.targets, reduction="sum") / tokens

    def measured(self, name: str, value: float) -> None:
        """Add what a part has of a step's mean to what is told of the step."""
        values = self._metrics["train"][name]
        values[:] = [sum(values) + value]

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """
        Score the held-out rows: loss (nats a token), the share of tokens and of whole answers that the model would have
        chosen itself, each given the right tokens before it.
        """
        assert self.held_out is not None
        total, tokens, tokens_right, answers_right = 0.0, 0, 0, 0
        for logits, expected in self.judged(self.held_out):
            right = logits.argmax(-1) == expected.targets
            total += cross_entropy(logits, expected.targets, reduction="sum").item()
            tokens += len(right)
            tokens_right += int(right.sum())
            answers_right += sum(bool(piece.all()) for piece in right.split(expected.answers))
        return {
            f"{metric_key_prefix}_loss": total / tokens,
            f"{metric_key_prefix}_token_accuracy": tokens_right / tokens,
            f"{metric_key_prefix}_answer_accuracy": answers_right / len(self.held_out.rows),
        }

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The trainer's own, without the model card that TRL writes beside it."""
        with self.saving(self.state.global_step):
            Trainer._save_checkpoint(self, model, trial)

    def judged(self, packed: PackedRows) -> Iterator[tuple[torch.Tensor, Expected]]:
        """The logits (L, vocabulary) of every batch of these rows, without gradients."""
        self.model.eval()
        for numbers in TokenBatches(packed.lengths, self.part_tokens, seed=None):
            with torch.no_grad():
                yield self.answer(self.model, self._prepare_inputs(packed.batch(numbers)))
        self.model.train()

    def answer(self, model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, Expected]:
        """The logits (L, vocabulary) of a batch's learned tokens, float32, and what they should predict."""
        inputs, expected = expected_of(batch)
        return model(**inputs, use_cache=False).logits[0].float(), expected
