"""
Reward models on packed pairs: a score for an answer, such that better answers score higher (Bradley-Terry).

The base model with LoRA, and in the place of the vocabulary's head one of a single score, read at an answer's last
token, its end of turn. Loss and gradients are those of TRL's RewardTrainer (tests/train/test_train_reward.py;
https://arxiv.org/abs/2203.02155, eq. 1); a pair's prompt is computed once for its two answers. What is saved is what
PEFT reads as a SEQ_CLS adapter: LoRA and the head, safetensors.

This module imports torch and trl, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from ryorin_train.graders.grading import Sample
from ryorin_train.packing import PackedRows, TokenBatches, expected_of, shared_tokens
from ryorin_train.recipe import RewardRecipe
from ryorin_train.render import TokenGroup
from ryorin_train.trainer import PackedTrainer

OF_SCORES = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
"""What the PEFT configuration of a reward model has besides that of an adapter that answers."""


class RewardTrainer(PackedTrainer):
    """PackedTrainer over preference pairs, of a model with a head of one score."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """What a part adds to the mean loss of the step's pairs."""
        margins = pair_margins(model, inputs)
        pairs = len(inputs["step_answers"]) // 2
        self.tell(pairs, accuracy=(margins > 0).sum().item(), margin=margins.sum().item())
        return self.of_the_step(-logsigmoid(margins).sum(), pairs)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Score the held-out pairs: loss, the share whose better answer scores higher, and by how much."""
        assert self.held_out is not None
        self.model.eval()
        found = []
        for numbers in TokenBatches(self.held_out.lengths, self.part_tokens, seed=None):
            with torch.no_grad():
                found.append(pair_margins(self.model, self._prepare_inputs(self.held_out.batch(numbers))))
        self.model.train()
        margins = torch.cat(found)
        return {
            f"{metric_key_prefix}_loss": -logsigmoid(margins).mean().item(),
            f"{metric_key_prefix}_accuracy": (margins > 0).float().mean().item(),
            f"{metric_key_prefix}_margin": margins.mean().item(),
        }


def pair_margins(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """How much higher the better answers of a batch of pairs score. Shape: (pairs,)."""
    chosen, rejected = scores(model, batch).view(-1, 2).unbind(1)
    return chosen - rejected


def scores(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The scores of a packed batch's answers, in their order, float32. Shape: (answers,)."""
    inputs, _ = expected_of(batch)
    del inputs["logits_to_keep"]
    ends: list[int] = []
    at = inputs["shared_tokens"] - 1
    for stem, *branches in inputs["row_tokens"]:
        at += stem
        for length in branches:
            at += length
            ends.append(at)
    classifier = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = classifier.get_decoder()(**inputs, use_cache=False).last_hidden_state[0]
    return classifier.score(hidden[ends])[:, 0].float()


class RewardModel:
    """A trained reward model, ready to score. folder: of its adapter; base_path: of the base model that it adapts."""

    def __init__(self, base_path: Path, folder: Path, batch_tokens: int = 2048) -> None:
        from peft import PeftModel

        from ryorin_train.training import load_base

        self._batch_tokens = batch_tokens
        generator = torch.get_rng_state()  # a grader takes no random number from the run that it grades for
        base = load_base(base_path, RewardRecipe())
        torch.set_rng_state(generator)
        self.model = PeftModel.from_pretrained(base, str(folder)).eval()

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """A score for each answer, by its tokens. Those to one prompt that follow one another share its computing."""
        groups: list[TokenGroup] = []
        for sample in samples:
            if groups and groups[-1].prompt == sample.prompt:
                groups[-1] = TokenGroup(sample.prompt, (*groups[-1].answers, sample.answer))
            else:
                groups.append(TokenGroup(sample.prompt, (sample.answer,)))
        packed = PackedRows(groups, shared_tokens(groups))
        found: dict[int, list[float]] = {}
        device = next(self.model.parameters()).device
        for numbers in TokenBatches(packed.lengths, self._batch_tokens, seed=None):
            batch = packed.batch(numbers)
            batch |= {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
            with torch.no_grad():
                values = iter(scores(self.model, batch).tolist())
            for number in numbers:
                found[number] = [next(values) for _ in groups[number].answers]
        return [score for number in range(len(groups)) for score in found[number]]
