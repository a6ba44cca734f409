"""
TRL's loop over prompts: each step takes answers to its prompts, has them graded, and learns from them.

The answers of a step are a packed batch of groups (packing.py): a prompt's computing is shared by its answers. It is
taken in pieces of `part_tokens`, whose gradients add up. A group whose answers are all worth the same teaches nothing
and is left out where nothing holds to the start (`beta` 0).

This module imports torch and trl, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ryorin.digests import digest_of
from ryorin_index.statistics import compare
from ryorin_train.graders.grading import Grading, Mark, Sample
from ryorin_train.packing import PackedRows, TokenBatches, shared_tokens
from ryorin_train.recipe import ReinforcementRecipe
from ryorin_train.reinforcement.policy import advantages, has_spread, policy_loss
from ryorin_train.reinforcement.rollout import Sampling, sample
from ryorin_train.render import TokenGroup, TokenTask
from ryorin_train.trainer import PackedTrainer

HELD_OUT_AT_ONCE = 32  # prompts


@dataclass
class Taken:
    """
    The answers that a step learns from. advantage, before, reference: of each group a tensor of its answers' tokens.
    tokens: of all answers of the step, also of those that teach nothing.
    """

    packed: PackedRows
    advantage: list[torch.Tensor]
    tokens: int
    before: dict[int, torch.Tensor] = field(default_factory=dict)
    reference: dict[int, torch.Tensor] = field(default_factory=dict)


class PolicyTrainer(PackedTrainer):
    """
    PackedTrainer over prompts.

    grading: what answers are worth. ends: tokens that end an answer. `baseline`: grades of the held-out prompts'
    likeliest answers before training.
    """

    def __init__(self, *, recipe: ReinforcementRecipe, grading: Grading, ends: tuple[int, ...], **kwargs: Any) -> None:
        self.recipe, self.grading, self.ends = recipe, grading, ends
        self.baseline: list[float] = []
        self._taken: Taken | None = None
        self._start: dict[str, torch.Tensor] = {}
        super().__init__(**kwargs)

    def get_train_dataloader(self) -> Any:
        """Batches of prompts' numbers, each as often as its answers are learned from."""
        batches = _Repeated(self.packed.lengths, self.batch_tokens, self.order_seed, self.recipe.iterations)
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=lambda rows: {"rows": torch.tensor([row["row"] for row in rows])},
        )
        return self.accelerator.prepare(loader)

    def prepare(self) -> None:
        """Keep the weights that the run starts from, and grade what they answer."""
        self._start = {name: value.detach().clone() for name, value in self._trained()}
        if self.held_out is not None:
            self.baseline = [mark.grade for mark in self._likeliest()]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Take answers, or those of the step before once more, and learn from them. Returns the loss."""
        model.train()
        if self._taken is None or self.state.global_step % self.recipe.iterations == 0:
            self._taken = self._take(inputs["rows"].tolist())
        taken = self._taken
        loss = torch.zeros((), device=self.args.device)
        for numbers in self._pieces(taken):
            piece = self.compute_loss(model, self._batch(taken, numbers))
            self.accelerator.backward(piece)
            loss += piece.detach()
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a piece of a step; those of its pieces add up to the step's."""
        inputs = dict(inputs)
        advantage, before, reference, tokens = (
            inputs.pop(name) for name in ("advantage", "before", "reference", "tokens")
        )
        log_probs = self._log_probs(model, inputs)
        if before is None:  # the answers are the model's own as it is
            before = log_probs.detach()
            self._remember(self._taken.before if self._taken else {}, inputs, before)
        found = policy_loss(
            log_probs,
            before,
            log_probs.detach() if reference is None else reference,
            advantage,
            tokens=tokens,
            epsilon=self.recipe.epsilon,
            beta=self.recipe.beta,
        )
        self._metrics["train"]["kl"].append(found.kl.mean().item())
        self._metrics["train"]["clipped"].append(found.clipped.float().mean().item())
        return found.loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """
        Grade the likeliest answers to the held-out prompts: the mean, that of before training, and by how much it rose,
        with an interval and the p of a paired test (`ryorin_index.statistics.compare`).
        """
        marks = self._likeliest()
        now, before = np.array([mark.grade for mark in marks]), np.array(self.baseline)
        change = compare(now, before, self.recipe.seed)
        parts = {
            f"{metric_key_prefix}_grade_{name}": _mean(mark.parts[name] for mark in marks) for name in _parts(marks)
        }
        return {
            f"{metric_key_prefix}_reward": float(now.mean()),
            f"{metric_key_prefix}_reward_before": float(before.mean()),
            f"{metric_key_prefix}_gain": change["difference"],
            f"{metric_key_prefix}_gain_low": change["low"],
            f"{metric_key_prefix}_gain_high": change["high"],
            f"{metric_key_prefix}_p": change["p"],
            f"{metric_key_prefix}_graders_failed": _mean(float(bool(mark.failures)) for mark in marks),
            **(parts if len(parts) > 1 else {}),
        }

    def _take(self, rows: Sequence[int]) -> Taken:
        """Answers to these prompts, graded."""
        tasks: list[TokenTask] = [self.packed.rows[number] for number in rows]  # type: ignore[misc]
        how = Sampling(self.recipe.answers, self.recipe.max_answer_tokens, self.recipe.temperature, self.ends)
        seed = int(digest_of([self.recipe.seed, self.state.global_step])[:15], 16)
        groups = sample(self.model, tasks, how, seed)
        marks = self._marks(tasks, groups)
        grades = torch.tensor([mark.grade for mark in marks]).view(len(groups), -1)
        spread = has_spread(grades)
        self._tell(groups, marks, grades, spread)
        teaching = [at for at in range(len(groups)) if self.recipe.beta or bool(spread[at])]
        kept = [groups[at] for at in teaching]
        worth = advantages(grades)
        taken = Taken(
            packed=PackedRows(kept, shared_tokens(kept) if kept else 0),
            advantage=[
                worth[at].repeat_interleave(torch.tensor([len(answer) for answer in groups[at].answers]))
                for at in teaching
            ],
            tokens=sum(len(answer) for group in groups for answer in group.answers),
        )
        with self._at_start(), torch.no_grad():
            for numbers in self._pieces(taken):
                batch = self._prepare_inputs(taken.packed.batch(numbers))
                self._remember(taken.reference, batch, self._log_probs(self.model, batch))
        return taken

    def _likeliest(self) -> list[Mark]:
        """The grades of the likeliest answers to the held-out prompts."""
        assert self.held_out is not None
        tasks: list[TokenTask] = list(self.held_out.rows)  # type: ignore[arg-type]
        how = Sampling(1, self.recipe.max_answer_tokens, 0.0, self.ends)
        marks: list[Mark] = []
        for first in range(0, len(tasks), HELD_OUT_AT_ONCE):
            some = tasks[first : first + HELD_OUT_AT_ONCE]
            marks += self._marks(some, sample(self.model, some, how, 0))
        return marks

    def _marks(self, tasks: Sequence[TokenTask], groups: Sequence[TokenGroup]) -> list[Mark]:
        tokenizer: Any = self.processing_class
        return self.grading.grade(
            [
                Sample(task.item, tokenizer.decode(answer, skip_special_tokens=True), group.prompt, answer)
                for task, group in zip(tasks, groups, strict=True)
                for answer in group.answers
            ]
        )

    def _tell(
        self, groups: Sequence[TokenGroup], marks: Sequence[Mark], grades: torch.Tensor, spread: torch.Tensor
    ) -> None:
        """What the curve says of a step's answers."""
        answers = [answer for group in groups for answer in group.answers]
        told = self._metrics["train"]
        told["reward"].append(grades.mean().item())
        told["reward_deviation"].append(grades.std(1).mean().item())
        told["flat_groups"].append(1 - spread.float().mean().item())
        told["answer_tokens"].append(_mean(map(len, answers)))
        told["cut_off"].append(_mean(float(answer[-1] not in self.ends) for answer in answers))
        told["graders_failed"].append(_mean(float(bool(mark.failures)) for mark in marks))
        parts = _parts(marks)
        for name in parts if len(parts) > 1 else ():
            told[f"grade_{name}"].append(_mean(mark.parts[name] for mark in marks))

    def _pieces(self, taken: Taken) -> Iterator[list[int]]:
        if taken.packed.rows:
            yield from TokenBatches(taken.packed.lengths, self.part_tokens, seed=None)

    def _batch(self, taken: Taken, numbers: list[int]) -> dict[str, Any]:
        """A piece of a step, with what its tokens are to be compared to."""

        def joined(of_group: Any) -> torch.Tensor:
            return torch.cat([of_group[number] for number in numbers])

        known = all(number in taken.before for number in numbers)
        batch = taken.packed.batch(numbers) | {
            "advantage": joined(taken.advantage),
            "before": joined(taken.before) if known else None,
            "reference": joined(taken.reference) if taken.reference else None,
        }
        return {**self._prepare_inputs(batch), "tokens": taken.tokens}

    def _log_probs(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Of a batch's answers' tokens, at the temperature that they were taken at. Shape: (L,), in nats."""
        logits, expected = self.answer(model, batch)
        logits = logits / self.recipe.temperature
        return logits.gather(1, expected.targets[:, None])[:, 0] - logits.logsumexp(-1)

    def _remember(self, kept: dict[int, torch.Tensor], batch: dict[str, Any], values: torch.Tensor) -> None:
        """Keep a batch's values of tokens by group."""
        answers = iter(batch["answers"])
        sizes = [sum(next(answers) for _ in pieces[1:]) for pieces in batch["row_tokens"]]
        kept.update(zip(batch["rows"], values.detach().split(sizes), strict=True))

    def _trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, value) for name, value in self.model.named_parameters() if value.requires_grad)

    @contextmanager
    def _at_start(self) -> Iterator[None]:
        """Inside, the model is what the run started from."""
        now = {name: value.data for name, value in self._trained()}
        for name, value in self._trained():
            value.data = self._start.get(name, value.data)
        try:
            yield
        finally:
            for name, value in self._trained():
                value.data = now[name]


class _Repeated(TokenBatches):
    """Each batch several times in a row."""

    def __init__(self, lengths: Sequence[int], batch_tokens: int, seed: int | None, times: int) -> None:
        super().__init__(lengths, batch_tokens, seed)
        self.times = times

    def __len__(self) -> int:
        return self.count * self.times

    def __iter__(self) -> Iterator[list[int]]:
        return (batch for batch in super().__iter__() for _ in range(self.times))


def _parts(marks: Sequence[Mark]) -> list[str]:
    return list(marks[0].parts) if marks else []


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
