"""
A vLLM plugin: LoRA on CPU with each adapter's matrices read once a batch, not once a token.

vLLM's torch operations (`vllm/lora/ops/torch_ops/lora_ops.py`) index the stacked LoRA matrices with one slot number a
token, which copies a matrix for every token of the batch before multiplying. Here the tokens are grouped by slot and
each group is one matrix product: the same sums, no copies. `bench/lora.py` measures the difference.

The functions keep the names, signatures and results of those they replace, but for one thing. Slot -1 means 'no
adapter' (`PunicaWrapperBase.token_lora_indices`); the stock operations index with it and so give such a token the
adapter in the *last* slot whenever it shares a batch with a token that has one: once that slot was ever written, a
request to the base model would be answered by some tenant's adapter. Here -1 adds nothing.

Linear layers in float32, which is all there is with the bundled model, go a shorter way (`lora_linear.py`).

`register` is the entry point (`vllm.general_plugins`), called by vLLM in every one of its processes; on a platform that
has kernels of its own it does nothing.
"""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ryorin_serve.lora_linear import Batch, Groups

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
    wrapper = punica_cpu.PunicaWrapperCPU
    if not hasattr(wrapper.add_lora_linear, "is_ours"):
        wrapper.__init__ = _warming(wrapper.__init__)
        wrapper.update_metadata = _noting(wrapper.update_metadata)
        wrapper.add_lora_linear = _adding(wrapper.add_lora_linear)
        wrapper.add_lora_logits = _adding_logits(wrapper.add_lora_logits)
        wrapper.add_lora_embedding = _adding_embedding(wrapper.add_lora_embedding)


def _noting(stock: Any) -> Any:
    """`update_metadata`, after which the batch is looked at anew."""

    @wraps(stock)
    def update_metadata(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        self.ryorin_batch = None

    return update_metadata


def _adding(stock: Any) -> Any:
    """`add_lora_linear`, by `lora_linear.py` where all is float32."""

    @wraps(stock)
    def add_lora_linear(
        self: Any,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        from ryorin_serve.lora_linear import Stacks, add

        if self.ryorin_batch is None:
            self.ryorin_batch = batch_of(self)
        stacks = self.ryorin_stacks.get(id(lora_a_stacked))
        if stacks is None:
            stacks = self.ryorin_stacks[id(lora_a_stacked)] = Stacks(lora_a_stacked, lora_b_stacked)
        if not add(self.ryorin_batch, stacks, y, x, scale):
            stock(self, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **kwargs)

    add_lora_linear.is_ours = True  # type: ignore[attr-defined]
    return add_lora_linear


def _adding_logits(stock: Any) -> Any:
    """`add_lora_logits`, left out where no adapter of the batch has matrices for the head."""

    @wraps(stock)
    def add_lora_logits(
        self: Any, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **kwargs: Any
    ) -> None:
        if _adds(self, lora_a_stacked, self.sampler_indices):
            stock(self, y, x, lora_a_stacked, lora_b_stacked, scale, **kwargs)

    return add_lora_logits


def _adding_embedding(stock: Any) -> Any:
    """`add_lora_embedding`, left out where no adapter of the batch has matrices for the embedding."""

    @wraps(stock)
    def add_lora_embedding(self: Any, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *args: Any, **kwargs: Any) -> None:
        if _adds(self, lora_b_stacked, self.token_lora_indices):
            stock(self, y, x, lora_b_stacked, *args, **kwargs)

    return add_lora_embedding


def _adds(wrapper: Any, stacked: Tensor, slots: Tensor) -> bool:
    """Whether any of these slots holds anything in this stack."""
    from ryorin_serve.lora_linear import Filled

    filled = wrapper.ryorin_stacks.get(id(stacked))
    if filled is None:
        filled = wrapper.ryorin_stacks[id(stacked)] = Filled([stacked])
    return any(slot != NO_ADAPTER and filled(slot) for slot in set(slots.tolist()))


def _telling(stock: Any) -> Any:
    """`activate_adapter`, which writes an adapter into a slot."""

    @wraps(stock)
    def activate_adapter(self: Any, lora_id: int) -> Any:
        from ryorin_serve.lora_linear import written

        was_there = lora_id in self._active_adapters  # vLLM asks for it with every batch
        try:
            return stock(self, lora_id)
        finally:
            if not was_there:
                written()

    activate_adapter.is_ours = True  # type: ignore[attr-defined]
    return activate_adapter


def _warming(stock: Any) -> Any:
    """The constructor, which also makes room for layers, and compiles before anybody waits for an answer."""

    @wraps(stock)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from vllm.lora.model_manager import LoRAModelManager  # which makes this object

        from ryorin_serve.lora_linear import warm_up

        if not hasattr(LoRAModelManager.activate_adapter, "is_ours"):
            LoRAModelManager.activate_adapter = _telling(LoRAModelManager.activate_adapter)
        stock(self, *args, **kwargs)
        self.ryorin_batch = None
        self.ryorin_stacks = {}
        warm_up()

    return __init__


def batch_of(wrapper: Any) -> Batch:
    """The batch that the wrapper's metadata tell of."""
    from ryorin_serve.lora_linear import Batch

    if wrapper.is_prefill:
        _, lengths, slots, *_ = wrapper.prefill_metadata
        return Batch(_rows_of_slots(tuple(slots.tolist()), tuple(lengths.tolist())))
    return Batch(_rows_of_slots(tuple(wrapper.token_lora_indices.tolist()), None))


@lru_cache(maxsize=64)
def _rows_of_slots(slots: tuple[int, ...], lengths: tuple[int, ...] | None) -> Groups:
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


def _shrink(inputs: Tensor, weights: Tensor, output: Tensor, groups: Groups, scaling: float) -> None:
    """Result: output[:, :rank] = scaling * (inputs @ A.T), A by the row's slot. weights: (slots, [1,] rank, width)."""
    rank = weights.shape[-2]
    for slot, rows in groups:
        if slot == NO_ADAPTER:
            output[rows, :rank] = 0
            continue
        matrix = weights[slot].to(output.dtype).reshape(rank, -1)
        output[rows, :rank] = (inputs[rows].to(output.dtype) @ matrix.T).mul_(scaling)


def _expand(inputs: Tensor, weights: Tensor, output: Tensor, groups: Groups, add_inputs: bool) -> None:
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
