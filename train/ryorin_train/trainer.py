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
from accelerate.data_loader import prepare_data_loader
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer
from trl import SFTTrainer

from ryorin_train.general_texts import WEIGHT
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
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        steps = TokenBatches(
            self.packed.lengths,
            self.batch_tokens,
            self.order_seed,
            beside=self.packed.kept_rows,
            processes=processes,
            process=process,
        )
        # Processes take part in every backward pass together, so their steps are of as many parts: of one.
        part_tokens = self.part_tokens if processes == 1 else sum(self.packed.lengths)
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=steps,
            collate_fn=lambda features: self.packed.step([feature["row"] for feature in features], part_tokens),
        )
        if processes == 1:
            return self.accelerator.prepare(loader)
        # accelerate would deal whole batches to processes and keep the epoch from the sampler; ours deals them already
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def of_the_step(self, total: Any, count: int) -> Any:
        """
        What a part's sum adds to the mean over a step. count: the values of all parts of this process's step.

        Of several processes times their number, since gradients and logged losses are averaged over them.
        """
        processes = self.accelerator.num_processes
        return total / max(count, 1) if processes == 1 else total * (processes / max(self.of_all(count), 1))

    def of_all(self, count: int) -> float:
        """A count of all processes together. They must ask equally often."""
        if self.accelerator.num_processes == 1:
            return count
        return self.accelerator.reduce(torch.tensor(float(count), device=self.accelerator.device), "sum").item()

    def tell(self, count: int, **totals: float) -> None:
        """Figures of a step for its line of the loss curve: a part's sum of each; count as in `of_the_step`."""
        for name, total in totals.items():
            part = torch.tensor(float(self.of_the_step(total, count)), device=self.accelerator.device)
            values = self._metrics["train"][name]
            values[:] = [sum(values) + self.accelerator.reduce(part, "mean").item()]

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
        """
        What a part adds to the mean cross-entropy of the step's learned tokens, in nats; and where rows are kept, the
        divergence from the base model at each of their tokens, WEIGHT times as much as a learned one.
        """
        logits, expected = self.answer(model, inputs)
        learned, targets = sum(expected.step_answers) - expected.step_kept, expected.targets
        moved, apart = logits.new_zeros(()), inputs["rows_apart"]
        if self.packed.kept is not None and apart:
            own = len(targets) - sum(expected.answers[-apart:])
            logits, of_kept = logits.split([own, len(targets) - own])
            targets = targets[:own]
            moved = self.packed.kept.divergence(of_kept, expected.rows[-apart:])
        loss = cross_entropy(logits, targets, reduction="sum")
        right = logits.detach().argmax(-1) == targets
        self.tell(learned, mean_token_accuracy=right.sum().item())
        if self.packed.kept is not None:
            self.tell(learned, answer_loss=loss.item())
            if self.of_all(expected.step_kept):
                self.tell(expected.step_kept, base_divergence=moved.item())
        return self.of_the_step(loss + WEIGHT * moved, learned)

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
        return model(**inputs, use_cache=False).logits.squeeze(0).float(), expected
