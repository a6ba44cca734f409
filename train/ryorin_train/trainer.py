"""
TRL's SFTTrainer on packed batches.

TRL and transformers keep the optimizer, the schedule, clipping, mixed precision and the loop; this class gives them
batches by tokens (packing.py) and a loss over the learned tokens alone. TRL's own fused head would, on a CPU, compute
the logits of every token.

This module imports torch and trl, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer
from trl import SFTTrainer

from ryorin_train.packing import Expected, PackedRows, TokenBatches, expected_of


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
        parts, part = self.accelerator.num_processes, self.accelerator.process_index
        batches = TokenBatches(self.packed.lengths, self.batch_tokens, self.order_seed, parts=parts, part=part)
        loader = DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.packed)
        if parts == 1:
            return self.accelerator.prepare(loader)
        # accelerate would deal whole batches to processes and keep the epoch from the sampler; ours deals them already
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def of_the_step(self, mean: Any, count: int) -> Any:
        """
        What this process's mean over `count` values adds to the mean over those of all processes.

        Times the number of processes, since gradients and logged losses are averaged over them.
        """
        parts = self.accelerator.num_processes
        if parts == 1:
            return mean
        total = self.accelerator.reduce(torch.tensor(float(count), device=self.accelerator.device), "sum")
        return mean * (count * parts / total)

    def tell(self, count: int, **figures: float) -> None:
        """Figures of a step, each this process's mean over `count` values, for its line of the loss curve."""
        for name, value in figures.items():
            part = torch.tensor(float(self.of_the_step(value, count)), device=self.accelerator.device)
            self._metrics["train"][name].append(self.accelerator.reduce(part, "mean").item())

    def prepare(self) -> None:
        """Called once, with the first weights in place and the lower layers skipped, before training begins."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy of the learned tokens, in nats."""
        logits, expected = self.answer(model, inputs)
        right = logits.detach().argmax(-1) == expected.targets
        self.tell(len(right), mean_token_accuracy=right.float().mean().item())
        return self.of_the_step(cross_entropy(logits, expected.targets), len(right))

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
        Trainer._save_checkpoint(self, model, trial)

    def judged(self, packed: PackedRows) -> Iterator[tuple[torch.Tensor, Expected]]:
        """The logits (L, vocabulary) of every batch of these rows, without gradients."""
        self.model.eval()
        for numbers in TokenBatches(packed.lengths, self.batch_tokens, seed=None):
            with torch.no_grad():
                yield self.answer(self.model, self._prepare_inputs(packed.batch(numbers)))
        self.model.train()

    def answer(self, model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, Expected]:
        """The logits (L, vocabulary) of a batch's learned tokens, float32, and what they should predict."""
        inputs, expected = expected_of(batch)
        return model(**inputs, use_cache=False).logits[0].float(), expected
