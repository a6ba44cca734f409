"""
General texts among the rows, on which the model is held to what the base model says, so that general ability is kept.

Their loss is the Kullback-Leibler divergence of the model from the base model at every token: learning without
forgetting (https://arxiv.org/abs/1606.09282), the base model its own teacher. What the base model says is kept as the
states that enter its head (tokens x hidden size), computed once, before the first step; the head makes its
distributions of them again, step by step.

This module imports torch, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import log_softmax

from ryorin_train.packing import PackedRows, TokenBatches, expected_of


class Kept:
    """
    What the base model says of the rows that are kept.

    head: from states (L, hidden) to logits (L, vocabulary). states: by the number of a row what enters it for the row's
    learned tokens.
    """

    def __init__(self, head: Any, states: dict[int, torch.Tensor]) -> None:
        self._head = head
        self._states = states

    def divergence(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """
        KL(base model || model), summed over the learned tokens of these rows, in nats. logits: the model's of those
        tokens, (L, vocabulary), float32.
        """
        with torch.no_grad():
            base = self._head(torch.cat([self._states[row] for row in rows])).float()
        divergence: torch.Tensor = Divergence.apply(logits, base)
        return divergence


class Divergence(torch.autograd.Function):
    """
    KL(q || p) summed over tokens, in nats, of softmax distributions: p of `logits`, q of `base`; (L, vocabulary) each.

    Their difference is the gradient; PyTorch's own way there passes twice as often over values that fill no cache.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """A scalar."""
        told, base = log_softmax(logits, -1), log_softmax(base, -1)
        probabilities = base.exp()
        ctx.save_for_backward(told, probabilities)
        return torch.dot(probabilities.flatten(), base.sub_(told).flatten())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """The gradient of `logits`."""
        told, probabilities = ctx.saved_tensors
        return told.exp().sub_(probabilities).mul_(gradient), None


def compute_kept(model: Any, packed: PackedRows, batch_tokens: int) -> Kept:
    """
    Ask the base model, which is `model` before it is adapted, about every row that is kept. Layers whose results are in
    the rows' trunk are to be skipped by the caller.
    """
    head, device = model.get_output_embeddings(), next(model.parameters()).device
    numbers = [number for number, row in enumerate(packed.rows) if row.kept]
    states: dict[int, torch.Tensor] = {}
    entered: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    try:
        for places in TokenBatches([packed.lengths[number] for number in numbers], batch_tokens, seed=None):
            inputs, expected = expected_of(packed.batch([numbers[place] for place in places]))
            inputs = {name: one.to(device) if torch.is_tensor(one) else one for name, one in inputs.items()}
            with torch.no_grad():
                model(**inputs, use_cache=False)
            pieces = entered.pop().squeeze(0).split(expected.answers)
            states.update((row, piece.clone()) for row, piece in zip(expected.rows, pieces, strict=True))
    finally:
        handle.remove()
    return Kept(head, states)
