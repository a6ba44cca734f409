"""
What LoRA adds to a linear layer in float32 on a CPU.

A prompt's batch is some matrix products a slot, the last of which adds into the layer's output: nothing is copied,
filled with zeros or added apart. Decoding takes each token through 210 small products in the bundled model, where
calling costs more than computing; so the few rows of such a batch go through one loop, compiled by numba, which reads
each row's adapter where it lies, however many share the batch. For that loop the second matrices lie transposed in
memory, their shapes unchanged: vLLM writes adapters into them as before.

This module imports torch and numba, which come with vLLM; only vLLM's processes import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ryorin_serve.grouped_lora import NO_ADAPTER

Groups = tuple[tuple[int, Any], ...]  # a slot, and its rows: a slice, or a tensor of their numbers
FEW = 64  # rows of several adapters that the loop is faster for
FEWEST = 8  # rows of one adapter
_UNROLLED = 8  # ranks that the loop takes at once


@dataclass(frozen=True)
class Batch:
    """The rows of a batch of the engine by slot, each row in one group; those of NO_ADAPTER get nothing."""

    groups: Groups

    @cached_property
    def rows(self) -> int:
        """How many there are."""
        return len(self.slots)

    @cached_property
    def adapted(self) -> Groups:
        """The groups with an adapter."""
        return tuple((slot, rows) for slot, rows in self.groups if slot != NO_ADAPTER)

    @cached_property
    def slots(self) -> Any:
        """Shape (rows,), int64: each row's slot."""
        count = sum(rows.stop - rows.start if isinstance(rows, slice) else len(rows) for _, rows in self.groups)
        slots = np.empty(count, np.int64)
        for slot, rows in self.groups:
            slots[rows if isinstance(rows, slice) else rows.numpy()] = slot
        return slots

    @cached_property
    def is_small(self) -> bool:
        """Whether the loop is faster than products of matrices."""
        return self.rows <= (FEWEST if len(self.groups) == 1 else FEW)


class Filled:
    """
    Which slots of a stack of first matrices hold anything; others add nothing. An adapter of the upper layers leaves
    the lower ones empty, and hardly any has matrices for the head.
    """

    writes = 0  # of adapters into slots, in this process; see `written`

    def __init__(self, stacked: Sequence[Tensor]) -> None:
        self._stacked = stacked
        self._known: dict[int, bool] = {}
        self._as_of = Filled.writes

    def __call__(self, slot: int) -> bool:
        """Whether it does."""
        if self._as_of != Filled.writes:
            self._known, self._as_of = {}, Filled.writes
        known = self._known.get(slot)
        if known is None:
            known = self._known[slot] = any(bool(each[slot].any()) for each in self._stacked)
        return known


def written() -> None:
    """An adapter was written into a slot."""
    Filled.writes += 1


class Stacks:
    """
    The adapters of one linear layer in all slots.

    a_stacked, b_stacked: for each slice of the layer's output (slots, 1, rank, in) and (slots, 1, out, rank). They are
    kept, as vLLM keeps them; their memory is laid out anew: the slices' first matrices behind one another, so that they
    are one product, the second ones transposed.
    """

    def __init__(self, a_stacked: Sequence[Tensor], b_stacked: Sequence[Tensor]) -> None:
        self._given = a_stacked, b_stacked  # what this object is found by must not be given to another tensor
        self.is_float32 = all(each.dtype == torch.float32 for each in (*a_stacked, *b_stacked))
        if not self.is_float32:
            return
        self.is_filled = Filled(a_stacked)
        with torch.inference_mode(False):  # vLLM computes in it and writes adapters outside of it
            self._lay_out(a_stacked, b_stacked)

    def _lay_out(self, a_stacked: Sequence[Tensor], b_stacked: Sequence[Tensor]) -> None:
        ranks = [a.shape[2] for a in a_stacked]
        widths = [b.shape[2] for b in b_stacked]
        self.width = sum(widths)
        self.first = torch.cat(list(a_stacked), dim=2).squeeze(1)
        for a, part in zip(a_stacked, self.first.split(ranks, dim=1), strict=True):
            a.data = part.unsqueeze(1)
        seconds = []
        for b in b_stacked:
            b.data = b.data.transpose(2, 3).contiguous().transpose(2, 3)
            seconds.append(b.data.squeeze(1).transpose(1, 2))
        self.loops = all(rank % _UNROLLED == 0 for rank in ranks)
        # For each slot: A of all slices, transposed; B of each slice, transposed, and which columns belong to it.
        self.views = []
        for slot in range(len(self.first)):
            parts, rank_at, column_at = [], 0, 0
            for second, rank, width in zip(seconds, ranks, widths, strict=True):
                parts.append((second[slot], slice(rank_at, rank_at + rank), slice(column_at, column_at + width)))
                rank_at, column_at = rank_at + rank, column_at + width
            self.views.append((self.first[slot].t(), parts))
        self.arrays = [
            (second.numpy(), ranks.start, columns.start)
            for second, (_, ranks, columns) in zip(seconds, self.views[0][1], strict=True)
        ]


def add(batch: Batch, stacks: Stacks, y: Tensor, x: Tensor, scale: float) -> bool:
    """
    Result: y += scale * (x @ A.T) @ B.T, A and B by the row's slot, slice by slice. False when it is not for here: of
    another type, or of other rows or columns than the batch and the layer have.

    Shapes: x (…, in), y (…, sum of the slices).
    """
    if not (stacks.is_float32 and x.dtype == y.dtype == torch.float32):
        return False
    x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    if len(x) != batch.rows or x.shape[1] != stacks.first.shape[2] or y.shape[1] != stacks.width:
        return False
    filled = [(slot, rows) for slot, rows in batch.adapted if stacks.is_filled(slot)]
    if not filled:
        return True
    if batch.is_small and stacks.loops and x.is_contiguous() and y.is_contiguous():
        inputs, outputs, first = x.numpy(), y.numpy(), stacks.first.numpy()
        for second, rank_at, column_at in stacks.arrays:
            add_rows(inputs, outputs, batch.slots, first, rank_at, second, column_at, scale)
        return True
    for slot, rows in filled:
        a, parts = stacks.views[slot]
        adjacent = isinstance(rows, slice)
        if len(batch.groups) == 1:
            some, target = x, y
        elif adjacent:
            some, target = x[rows], y[rows]
        else:
            some, target = x.index_select(0, rows), y
        low = some.mm(a)
        for b, ranks, columns in parts:
            one = len(parts) == 1
            part, inner = (target, low) if one else (target[:, columns], low[:, ranks])
            if adjacent:
                part.addmm_(inner, b, alpha=scale)
            else:
                part.index_add_(0, rows, inner.mm(b), alpha=scale)
    return True


@numba.njit(
    "void(float32[:, ::1], float32[:, ::1], int64[::1], float32[:, :, ::1], int64, float32[:, :, ::1], int64, float64)",
    cache=True,
    fastmath=True,
    nogil=True,
)
def add_rows(x: Any, y: Any, slots: Any, a: Any, first: int, b: Any, offset: int, scale: float) -> None:
    """
    Result: y[:, offset : offset + out] += scale * (x @ A.T) @ B, by the row's slot.

    Shapes: x (rows, in), y (rows, columns), slots (rows,), a (slots, ranks of all slices, in), of which this slice's
    begin at `first`, b (slots, rank, out); the rank is a multiple of 8.
    """
    factor = np.float32(scale)
    zero = np.float32(0)
    for row in range(x.shape[0]):
        slot = slots[row]
        if slot < 0:
            continue
        inputs, outputs = x[row], y[row, offset : offset + b.shape[2]]
        for rank in range(0, b.shape[1], 8):
            # Each row of a matrix by a name of its own: so the inner loops become vector instructions.
            some = a[slot, first + rank : first + rank + 8]
            a0, a1, a2, a3, a4, a5, a6, a7 = some[0], some[1], some[2], some[3], some[4], some[5], some[6], some[7]
            low0, low1, low2, low3, low4, low5, low6, low7 = zero, zero, zero, zero, zero, zero, zero, zero
            for at in range(inputs.shape[0]):
                value = inputs[at]
                low0 += value * a0[at]
                low1 += value * a1[at]
                low2 += value * a2[at]
                low3 += value * a3[at]
                low4 += value * a4[at]
                low5 += value * a5[at]
                low6 += value * a6[at]
                low7 += value * a7[at]
            low0, low1, low2, low3 = low0 * factor, low1 * factor, low2 * factor, low3 * factor
            low4, low5, low6, low7 = low4 * factor, low5 * factor, low6 * factor, low7 * factor
            some = b[slot, rank : rank + 8]
            b0, b1, b2, b3, b4, b5, b6, b7 = some[0], some[1], some[2], some[3], some[4], some[5], some[6], some[7]
            for at in range(outputs.shape[0]):
                outputs[at] += (
                    low0 * b0[at]
                    + low1 * b1[at]
                    + low2 * b2[at]
                    + low3 * b3[at]
                    + low4 * b4[at]
                    + low5 * b5[at]
                    + low6 * b6[at]
                    + low7 * b7[at]
                )


def warm_up() -> None:
    """Run the loop once. It is compiled where this module is imported first, for some seconds, and kept on the disk."""
    row, stack = np.zeros((1, 8), np.float32), np.zeros((1, 8, 8), np.float32)
    add_rows(row, row.copy(), np.zeros(1, np.int64), stack, 0, stack, 0, 1.0)
