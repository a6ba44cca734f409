"""
The trunk: the layers below the first adapted one.

They are frozen, so what they make of a row never changes during a run. It is computed once and kept (rows x tokens x
hidden size in float32: 130 MB for 57k tokens of SmolLM2); every epoch then begins at the first adapted layer. The
results are the same as without (tests/train/test_train_packing.py).

This module imports torch, so it is imported inside the functions that train, never by the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ryorin_train.packing import PackedRows, TokenBatches


class Trunk:
    """
    The hidden states that enter the first adapted layer.

    shared: (shared tokens, hidden), of the tokens that all rows begin with.
    rows: for each row (its other tokens, hidden).
    """

    def __init__(self, shared: torch.Tensor, rows: Sequence[torch.Tensor]) -> None:
        self.shared = shared
        self.rows = rows

    def hidden(self, numbers: Sequence[int], shared: int) -> torch.Tensor:
        """The input of a packed batch of these rows behind `shared` shared tokens: (1, tokens, hidden)."""
        return torch.cat([self.shared[:shared], *(self.rows[number] for number in numbers)]).unsqueeze(0)


def compute_trunk(
    model: Any, depth: int, packed: PackedRows, batch_tokens: int, on_share: Callable[[float], None]
) -> Trunk:
    """
    Run every row through the first `depth` layers, once. `on_share` hears the share that is done, 0 to 1.

    model: a transformers causal language model, loaded with the packed attention.
    """
    rows: list[Any] = [None] * len(packed.rows)
    shared: Any = None
    batches = TokenBatches(packed.lengths, batch_tokens, seed=None)
    device = next(model.parameters()).device
    with torch.no_grad(), entering(decoder_layers(model)[depth]) as captured:
        for done, numbers in enumerate(batches, start=1):
            batch = packed.batch(numbers)
            try:
                model(
                    input_ids=batch["input_ids"].to(device),
                    position_ids=batch["position_ids"].to(device),
                    shared_tokens=batch["shared_tokens"],
                    row_tokens=batch["row_tokens"],
                    rows_apart=batch["rows_apart"],
                    use_cache=False,
                )
            except Reached:
                hidden = captured.pop()[0]
            begun, numbers = batch["shared_tokens"], batch["rows"]
            if begun == packed.shared:
                shared = hidden[:begun].clone()
            pieces = hidden[begun:].split([packed.lengths[number] for number in numbers])
            for number, piece in zip(numbers, pieces, strict=True):
                rows[number] = piece.clone()
            on_share(done / len(batches))
    return Trunk(shared, rows)


class Reached(Exception):
    """The layer in question was reached; nothing above is needed."""


@contextmanager
def entering(layer: Any) -> Iterator[list[torch.Tensor]]:
    """Inside, what comes to `layer` is put into the list, and Reached is raised there."""
    captured: list[torch.Tensor] = []

    def stop(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append(args[0] if args else kwargs["hidden_states"])
        raise Reached

    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def skipped_layers(model: Any, depth: int) -> Iterator[None]:
    """Inside, the first `depth` layers of `model` pass on what they get: the inputs have been through them."""
    layers = decoder_layers(model)
    kept = [layers[number] for number in range(depth)]
    for number in range(depth):
        layers[number] = _Passing(kept[number])
    try:
        yield
    finally:
        for number, layer in enumerate(kept):
            layers[number] = layer


def decoder_layers(model: Any) -> Any:
    """The list of layers of a causal language model, adapted by PEFT or not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder().layers


class _Passing(torch.nn.Module):
    """Stands in for a layer and returns its input. What models ask a layer (e.g. its kind of attention) it answers."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not as a submodule: it must not appear among the parameters

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """The input, as it came."""
        return hidden_states
