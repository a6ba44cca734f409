"""
General texts beside the rows, on which the model is held to what the base model says, so that general ability is kept.

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

from ryorin.errors import InvalidInput
from ryorin_train.packing import PackedRows, TokenBatches, expected_of
from ryorin_train.trunk import Reached, entering

SLICE = 256  # tokens whose distributions are in memory at once: 50 MB each for 49,152 words


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
        states = torch.cat([self._states[row] for row in rows])
        divergence: torch.Tensor = Divergence.apply(logits, states, self._head)
        return divergence


class Divergence(torch.autograd.Function):
    """
    KL(q || p) summed over tokens, in nats: p the softmax of `logits` (L, vocabulary), q that of what `head` makes of
    `states` (L, hidden).

    The gradient is p - q. It is made at once, a slice after the other, and nothing else of that size is kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, states: torch.Tensor, head: Any) -> torch.Tensor:
        """A scalar."""
        gradient, total = torch.empty_like(logits), logits.new_zeros(())
        for ours, entered, difference in zip(
            logits.split(SLICE), states.split(SLICE), gradient.split(SLICE), strict=True
        ):
            told, base = log_softmax(ours, -1), log_softmax(head(entered).float(), -1)
            probabilities = base.exp()
            total += torch.dot(probabilities.flatten(), base.sub_(told).flatten())
            torch.sub(told.exp_(), probabilities, out=difference)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> Any:
        """The gradient of `logits`."""
        (gradient,) = ctx.saved_tensors
        return gradient * above, None, None


def compute_kept(model: Any, packed: PackedRows, batch_tokens: int) -> Kept:
    """
    Ask the base model, which is `model` before it is adapted, about every row that is kept. Layers whose results are in
    the rows' trunk are to be skipped by the caller.

    Raises InvalidInput for a base model that changes what its head gives (scaling, a soft cap).
    """
    head, device = model.get_output_embeddings(), next(model.parameters()).device
    numbers = packed.kept_rows
    states: dict[int, torch.Tensor] = {}

    def ask(rows: Sequence[int]) -> Any:
        inputs, _ = expected_of(packed.batch(rows))
        inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        return model(**inputs, use_cache=False).logits.squeeze(0).float()

    given: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda _module, _inputs, output: given.append(output))
    try:
        with torch.no_grad():
            said = ask(numbers[:1])
    finally:
        handle.remove()
    if not torch.allclose(given[0].squeeze(0).float(), said, rtol=1e-4, atol=1e-4):
        raise InvalidInput(
            "this base model changes what its head gives (scaling or a soft cap), and general texts cannot be kept on "
            "such a one yet: leave keep_general out",
            param="keep_general",
        )
    with torch.no_grad():
        for places in TokenBatches([packed.lengths[number] for number in numbers], batch_tokens, seed=None):
            rows = [numbers[place] for place in places]
            with entering(head) as entered:
                try:
                    ask(rows)
                except Reached:
                    pieces = entered.pop()[0].split([sum(packed.rows[row].layout(0).answers) for row in rows])
            states.update((row, piece.clone()) for row, piece in zip(rows, pieces, strict=True))
    return Kept(head, states)
