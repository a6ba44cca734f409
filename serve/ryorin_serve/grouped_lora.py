"""
A vLLM plugin: LoRA on CPU with each adapter's matrices read once a batch, not once a token.

vLLM's torch operations (`vllm/lora/ops/torch_ops/lora_ops.py`) index the stacked LoRA matrices with one slot number a
token, which copies a matrix for every token of the batch before multiplying. Here the tokens are grouped by slot and
each group is one matrix product: the same sums, no copies. `bench/lora.py` measures the difference.

The functions keep the names, signatures and results of those they replace, but for one thing. Slot -1 means 'no
adapter' (`PunicaWrapperBase.token_lora_indices`); the stock operations index with it and so give such a token the
adapter in the *last* slot whenever it shares a batch with a token that has one: with all slots in use, a request to the
base model would be answered by some tenant's adapter. Here -1 adds nothing.

`register` is the entry point (`vllm.general_plugins`), called by vLLM in every one of its processes; on a platform that
has kernels of its own it does nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NO_ADAPTER = -1
REPLACED = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice", "sgmv_shrink", "sgmv_expand", "sgmv_expand_slice")


def register() -> None:
    """Put the grouped operations in the place of the stock ones; only on CPU, and harmless when called again."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.ops import torch_ops
    from vllm.lora.punica_wrapper import punica_cpu

    # punica_cpu imports the operations by name: it holds references of its own.
    for module in (torch_ops, punica_cpu):
        for name in REPLACED:
            setattr(module, name, globals()[name])


@lru_cache(maxsize=64)
def _rows_of_slots(slots: tuple[int, ...], lengths: tuple[int, ...] | None) -> tuple[tuple[int, Any], ...]:
    """
    The rows of a batch by slot: pairs of a slot and its rows (a slice where they are adjacent, else an index tensor).

    A step of the model asks for the same batch some hundred times, hence the cache; it is keyed by content because
    vLLM reuses the tensors' memory.

    slots: one a run of adjacent rows; lengths: rows of each run, None for 1 each.
    """
    import torch

    rows: dict[int, list[int]] = {}
    start = 0
    for slot, length in zip(slots, lengths or (1,) * len(slots), strict=True):
        rows.setdefault(slot, []).extend(range(start, start + length))
        start += length
    return tuple(
        (slot, slice(members[0], members[-1] + 1))
        if members[-1] - members[0] + 1 == len(members)
        else (slot, torch.tensor(members))
        for slot, members in rows.items()
        if members
    )


def _shrink(
    inputs: Tensor, weights: Tensor, output: Tensor, groups: tuple[tuple[int, Any], ...], scaling: float
) -> None:
    """Result: output[:, :rank] = scaling * (inputs @ A.T), A by the row's slot. weights: (slots, [1,] rank, width)."""
    rank = weights.shape[-2]
    for slot, rows in groups:
        if slot == NO_ADAPTER:
            output[rows, :rank] = 0
            continue
        matrix = weights[slot].to(output.dtype).reshape(rank, -1)
        output[rows, :rank] = (inputs[rows].to(output.dtype) @ matrix.T).mul_(scaling)


def _expand(
    inputs: Tensor, weights: Tensor, output: Tensor, groups: tuple[tuple[int, Any], ...], add_inputs: bool
) -> None:
    """Result: output (+)= inputs @ B.T, B by the row's slot. weights: (slots, [1,] width, rank)."""
    width = min(weights.shape[-2], output.shape[1])  # the adapter's and the model's padding may differ
    target = output[:, :width]
    for slot, rows in groups:
        if slot == NO_ADAPTER:
            if not add_inputs:
                target[rows] = 0
            continue
        matrix = weights[slot].to(output.dtype).reshape(weights.shape[-2], -1)[:width]
        product = inputs[rows].to(output.dtype) @ matrix.T
        if not add_inputs:
            target[rows] = product
        elif isinstance(rows, slice):
            target[rows] += product
        else:
            target.index_add_(0, rows, product)


def bgmv_shrink(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor, scaling: float = 1.0
) -> None:
    """Stock semantics, one slot a row."""
    _shrink(inputs, lora_b_weights, output_tensor, _rows_of_slots(tuple(lora_indices_tensor.tolist()), None), scaling)


def bgmv_expand(
    inputs: Tensor, lora_b_weights: Tensor, output_tensor: Tensor, lora_indices_tensor: Tensor, add_inputs: bool = True
) -> None:
    """Stock semantics, one slot a row."""
    groups = _rows_of_slots(tuple(lora_indices_tensor.tolist()), None)
    _expand(inputs, lora_b_weights, output_tensor, groups, add_inputs)


def bgmv_expand_slice(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    lora_indices_tensor: Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """Stock semantics, one slot a row, into the columns from `slice_offset` on."""
    part = output_tensor[:, slice_offset : slice_offset + slice_size]
    _expand(inputs, lora_b_weights, part, _rows_of_slots(tuple(lora_indices_tensor.tolist()), None), add_inputs)


def sgmv_shrink(
    inputs: Tensor,
    lora_a_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    scaling: float,
) -> None:
    """Stock semantics, one slot a run of `seq_len_tensor` rows."""
    groups = _rows_of_slots(tuple(lora_indices_tensor.tolist()), tuple(seq_len_tensor.tolist()))
    _shrink(inputs, lora_a_weights, output_tensor, groups, scaling)


def sgmv_expand(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    add_inputs: bool = False,
) -> None:
    """Stock semantics, one slot a run of `seq_len_tensor` rows."""
    groups = _rows_of_slots(tuple(lora_indices_tensor.tolist()), tuple(seq_len_tensor.tolist()))
    _expand(inputs, lora_b_weights, output_tensor, groups, add_inputs)


def sgmv_expand_slice(
    inputs: Tensor,
    lora_b_weights: Tensor,
    output_tensor: Tensor,
    b_seq_start_loc: Tensor,
    seq_len_tensor: Tensor,
    lora_indices_tensor: Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = False,
) -> None:
    """Stock semantics, one slot a run of `seq_len_tensor` rows, into the columns from `slice_offset` on."""
    part = output_tensor[:, slice_offset : slice_offset + slice_size]
    groups = _rows_of_slots(tuple(lora_indices_tensor.tolist()), tuple(seq_len_tensor.tolist()))
    _expand(inputs, lora_b_weights, part, groups, add_inputs)
