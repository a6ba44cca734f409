"""The grouped LoRA operations against vLLM's own, on random input."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from lazily import Lazily

from ryorin_serve import grouped_lora

torch = Lazily("torch")


@pytest.fixture(scope="module")
def stock() -> ModuleType:
    """vLLM's operations, from their file: all of vLLM takes many seconds to import."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        pytest.skip("vLLM is not installed")
    path = Path(vllm.origin).parent / "lora" / "ops" / "torch_ops" / "lora_ops.py"
    spec = importlib.util.spec_from_file_location("stock_lora_ops", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another cost more than these small products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SLOTS = 4
SHAPES = [(1, 64, 96, 8), (7, 33, 5, 1), (40, 64, 128, 16)]  # rows, width in, width out, rank


def runs(rows: int, rng: random.Random, slots: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random runs of adjacent rows with one slot each, as vLLM's prefill metadata has them."""
    lengths: list[int] = []
    while sum(lengths) < rows:
        lengths.append(min(rng.randint(1, 9), rows - sum(lengths)))
    return torch.tensor([rng.choice(slots) for _ in lengths]), torch.tensor(lengths)


def with_empty_last_slot(weights: torch.Tensor) -> torch.Tensor:
    """What makes the stock operation right for slot -1: a last slot of zeros."""
    return torch.cat([weights, torch.zeros_like(weights[:1])])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slots", [[2], [0, 1, 2, 3], [-1, 0, 3], [-1]])
@pytest.mark.parametrize("dtype_name", ["float32", "bfloat16"])
@pytest.mark.parametrize("with_axis", [True, False])
def test_same_results_as_the_stock_operations(stock, shape, slots, dtype_name, with_axis):
    dtype = getattr(torch, dtype_name)
    rows, width, width_out, rank = shape
    rng = random.Random(0)
    torch.manual_seed(0)
    axis = (1,) if with_axis else ()
    a = torch.randn(SLOTS, *axis, rank, width).to(dtype)
    b = torch.randn(SLOTS, *axis, width_out, rank).to(dtype)
    x = torch.randn(rows, width).to(dtype)
    run_slots, lengths = runs(rows, rng, slots)
    row_slots = torch.repeat_interleave(run_slots, lengths)
    metadata = (torch.zeros_like(lengths), lengths, run_slots, len(lengths), int(lengths.max()), rows)

    def both(name: str, inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, *rest: object) -> None:
        args = metadata if name.startswith("sgmv") else (row_slots,)
        expected, got = output.clone(), output.clone()
        getattr(stock, name)(inputs, with_empty_last_slot(weights), expected, *args, *rest)
        getattr(grouped_lora, name)(inputs, weights, got, *args, *rest)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3 if dtype == torch.float32 else 5e-2)

    low = torch.randn(rows, rank)
    for prefix in ("sgmv", "bgmv"):
        both(f"{prefix}_shrink", x, a, torch.randn(rows, rank), 0.7)
        for add in (True, False):
            for out_dtype in (torch.float32, dtype):
                both(f"{prefix}_expand", low, b, torch.randn(rows, width_out).to(out_dtype), add)
                both(f"{prefix}_expand", low, b, torch.randn(rows, width_out + 3).to(out_dtype), add)
                both(
                    f"{prefix}_expand_slice", low, b, torch.randn(rows, width_out + 9).to(out_dtype), 4, width_out, add
                )


def test_a_row_without_adapter_is_left_alone_where_the_stock_operation_gives_it_the_last_slot(stock):
    weights = torch.ones(SLOTS, 1, 3, 2)
    slots = torch.tensor([0, -1])
    ours, theirs = torch.zeros(2, 3), torch.zeros(2, 3)
    grouped_lora.bgmv_expand(torch.ones(2, 2), weights, ours, slots)
    stock.bgmv_expand(torch.ones(2, 2), weights, theirs, slots)
    assert ours.tolist() == [[2, 2, 2], [0, 0, 0]]
    assert theirs.tolist() == [[2, 2, 2], [2, 2, 2]], "vLLM repaired this: the note in grouped_lora can go"
