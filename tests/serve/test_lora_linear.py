"""What LoRA adds to a linear layer on a CPU, against vLLM's own operations: random shapes, ranks and mixed batches."""

from __future__ import annotations

import random
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lazily import Lazily
from test_grouped_lora import one_thread, stock, with_empty_last_slot  # noqa: F401  # fixtures

from ryorin_serve import grouped_lora

torch = Lazily("torch")
lora_linear = Lazily("ryorin_serve.lora_linear")

SLOTS = 4


def stacks_of(outs: list[int], width: int, rank: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Random matrices in all slots, as vLLM's layers keep them."""
    a = tuple(torch.randn(SLOTS, 1, rank, width) for _ in outs)
    return a, tuple(torch.randn(SLOTS, 1, out, rank) for out in outs)


def by_stock(ops: ModuleType, y: Any, x: Any, a: Any, b: Any, slots: Any, scale: float) -> Any:
    """What vLLM's own operations make of it; they give slot -1 the last slot, which is made empty."""
    y, at = y.clone(), 0
    for first, second in zip(a, b, strict=True):
        low = torch.zeros(len(x), first.shape[2])
        ops.bgmv_shrink(x, with_empty_last_slot(first), low, slots, scale)
        ops.bgmv_expand_slice(low, with_empty_last_slot(second), y, slots, at, second.shape[2], True)
        at += second.shape[2]
    return y


def batch(slots: list[int]) -> Any:
    return lora_linear.Batch(grouped_lora._rows_of_slots(tuple(slots), None))


@given(
    slots=st.lists(st.integers(-1, SLOTS - 1), min_size=1, max_size=100),
    outs=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    width=st.integers(1, 70),
    rank=st.sampled_from([1, 8, 16, 24, 64]),
    scale=st.sampled_from([1.0, 0.5, -2.0]),
)
def test_it_is_what_the_stock_operations_give(
    stock: ModuleType,  # noqa: F811
    slots: list[int],
    outs: list[int],
    width: int,
    rank: int,
    scale: float,
) -> None:
    torch.manual_seed(len(slots) * width)
    a, b = stacks_of(outs, width, rank)
    x, y = torch.randn(len(slots), width), torch.randn(len(slots), sum(outs))
    expected = by_stock(stock, y, x, a, b, torch.tensor(slots), scale)
    assert lora_linear.add(batch(slots), lora_linear.Stacks(a, b), y, x, scale)
    assert torch.allclose(y, expected, rtol=1e-4, atol=1e-4 * (rank * width) ** 0.5)


@pytest.mark.parametrize("rows", [3, 200])
def test_both_ways_leave_rows_without_an_adapter_alone_to_the_bit(rows: int) -> None:
    torch.manual_seed(0)
    chance = random.Random(0)
    slots = [chance.choice((-1, -1, 0, 3)) for _ in range(rows - 1)] + [-1]
    a, b = stacks_of([5, 3], 16, 8)
    x, y = torch.randn(rows, 16), torch.randn(rows, 8)
    before = y.clone()
    lora_linear.add(batch(slots), lora_linear.Stacks(a, b), y, x, 1.0)
    for row, slot in enumerate(slots):
        assert torch.equal(y[row], before[row]) is (slot == -1)


@pytest.mark.parametrize("inference", [True, False])
def test_what_vllm_writes_into_a_slot_later_is_there(inference: bool) -> None:
    torch.manual_seed(0)
    a, b = stacks_of([6], 16, 8)
    with torch.inference_mode(inference):  # vLLM answers in it, and writes adapters outside of it
        stacks = lora_linear.Stacks(a, b)
    for stack in (*a, *b):
        stack[1] = 0  # as a layer's reset_lora does
    lora_linear.written()
    x, y = torch.randn(1, 16), torch.zeros(1, 6)
    lora_linear.add(batch([1]), stacks, y, x, 1.0)
    assert not y.any()
    new_a, new_b = torch.randn(8, 16), torch.randn(6, 8)
    a[0][1, 0, :8, :16].copy_(new_a)  # as its set_lora does
    b[0][1, 0, :6, :8].copy_(new_b)
    lora_linear.written()
    for rows in (1, 300):  # the loop, and products of matrices
        x, y = torch.randn(rows, 16), torch.zeros(rows, 6)
        lora_linear.add(batch([1] * rows), stacks, y, x, 1.0)
        assert torch.allclose(y, x @ new_a.T @ new_b.T, atol=1e-4)


def test_whether_a_slot_is_empty_is_looked_up_once_after_each_writing() -> None:
    looked: list[int] = []

    class Stack:
        def __getitem__(self, slot: int) -> Any:
            looked.append(slot)
            return torch.zeros(1)

    filled = lora_linear.Filled([Stack()])
    for _ in range(3):
        assert not filled(2)
    assert looked == [2]
    lora_linear.written()
    filled(2)
    assert looked == [2, 2]


def test_rows_with_gaps_in_memory_take_the_other_way() -> None:
    torch.manual_seed(0)
    a, b = stacks_of([6], 16, 8)
    x, y = torch.randn(16, 3).t(), torch.zeros(3, 6)
    assert lora_linear.add(batch([1, 2, 1]), lora_linear.Stacks(a, b), y, x, 1.0)
    for row, slot in enumerate((1, 2, 1)):
        assert torch.allclose(y[row], x[row] @ a[0][slot, 0].T @ b[0][slot, 0].T, atol=1e-4)


def test_what_is_not_for_it_is_left_to_vllm() -> None:
    a, b = stacks_of([6], 16, 8)
    stacks = lora_linear.Stacks(a, b)
    x, y = torch.randn(3, 16), torch.zeros(3, 6)
    assert not lora_linear.add(batch([0, 1]), stacks, y, x, 1.0), "more rows than the batch has"
    assert not lora_linear.add(batch([0] * 3), stacks, torch.zeros(3, 7), x, 1.0), "other columns"
    assert not lora_linear.add(batch([0] * 3), stacks, y, torch.randn(3, 17), 1.0), "and what goes in"
    assert not lora_linear.add(batch([0] * 3), stacks, y.double(), x.double(), 1.0)
    halves = lora_linear.Stacks(tuple(each.bfloat16() for each in a), tuple(each.bfloat16() for each in b))
    assert not lora_linear.add(batch([0] * 3), halves, y, x, 1.0)
    assert not y.any()


class Wrapper:
    """What `register` changes of vLLM's wrapper, without vLLM."""

    is_prefill = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ryorin_batch, self.ryorin_stacks = None, {}

    def update_metadata(self, slots: list[int], lengths: list[int]) -> None:
        self.prefill_metadata = (None, torch.tensor(lengths), torch.tensor(slots), len(slots), 0, 0)
        rows = [slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)]
        self.sampler_indices = self.token_lora_indices = torch.tensor(rows)

    def add_lora_linear(self, *_: Any, **__: Any) -> None:
        self.asked.append("linear")

    def add_lora_logits(self, *_: Any, **__: Any) -> None:
        self.asked.append("logits")

    def add_lora_embedding(self, *_: Any, **__: Any) -> None:
        self.asked.append("embedding")


@pytest.fixture
def wrapper() -> Any:
    class Patched(Wrapper):
        update_metadata = grouped_lora._noting(Wrapper.update_metadata)
        add_lora_linear = grouped_lora._adding(Wrapper.add_lora_linear)
        add_lora_logits = grouped_lora._adding_logits(Wrapper.add_lora_logits)
        add_lora_embedding = grouped_lora._adding_embedding(Wrapper.add_lora_embedding)

    return Patched()


def test_each_batch_is_looked_at_anew(wrapper: Any) -> None:
    torch.manual_seed(0)
    a, b = stacks_of([6], 16, 8)
    x = torch.randn(3, 16)
    for slots, lengths in (([0, 1], [1, 2]), ([1, -1], [2, 1]), ([-1], [3])):
        wrapper.update_metadata(slots, lengths)
        y, wanted = torch.zeros(3, 6), torch.zeros(3, 6)
        wrapper.add_lora_linear(y, x, a, b, 1.0, (6,))
        rows = [slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)]
        for row, slot in enumerate(rows):
            if slot >= 0:
                wanted[row] = x[row] @ a[0][slot, 0].T @ b[0][slot, 0].T
        assert torch.allclose(y, wanted, atol=1e-4)
    wrapper.add_lora_linear(torch.zeros(2, 6), x[:2], a, b, 1.0, (6,))
    assert wrapper.asked == ["linear"], "of other rows than the batch: vLLM's own way"


def test_head_and_embedding_cost_nothing_where_no_adapter_of_the_batch_has_any(wrapper: Any) -> None:
    a, b = stacks_of([6], 16, 8)
    head, rows = torch.zeros_like(a[0]), torch.zeros_like(b[0])
    head[2] = rows[2] = 1.0
    for slots, asked in (([0, 1], []), ([-1], []), ([0, 2], ["logits", "embedding"])):
        wrapper.update_metadata(slots, [1] * len(slots))
        wrapper.add_lora_logits(None, None, head, None, 1.0)
        wrapper.add_lora_embedding(None, None, rows)
        assert wrapper.asked == asked


def test_only_writing_an_adapter_counts_as_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager(SimpleNamespace):
        def activate_adapter(self, lora_id: int) -> bool:
            return self._active_adapters.setdefault(lora_id) is None

    Manager.activate_adapter = grouped_lora._telling(Manager.activate_adapter)
    manager, before = Manager(_active_adapters={}), lora_linear.Filled.writes
    for _ in range(3):  # vLLM asks with every batch
        manager.activate_adapter(7)
    assert lora_linear.Filled.writes == before + 1
