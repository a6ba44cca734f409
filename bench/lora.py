"""
Grouped LoRA against vLLM's own CPU operations.

Shows what the plugin `ryorin_serve.grouped_lora` saves: the time of all LoRA products of one transformer layer of
SmolLM2-135M (query, key, value, output, gate, up, down; rank 16, float32) for a batch of tokens, first with vLLM's own
torch operations, then with the grouped ones, in turn within one process, so that whatever else the machine does hits
both. Batches: a long prompt for one adapter, a prompt chunk mixed from four adapters and the base model, and decoding
steps of 32 streams and of one. The value is the ratio of the medians for the long prompt.

    python bench/lora.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from common import report
from vllm.lora.ops.torch_ops import lora_ops as stock

from ryorin_serve import grouped_lora

RANK, SLOTS, HIDDEN, KEYS, INNER = 16, 4, 576, 192, 1536
LINEARS = [(HIDDEN, (HIDDEN, KEYS, KEYS)), (HIDDEN, (HIDDEN,)), (HIDDEN, (INNER, INNER)), (INNER, (HIDDEN,))]
LAYERS = 30
# name: slots of runs of adjacent tokens, tokens of each run
BATCHES: dict[str, tuple[list[int], list[int]]] = {
    "512 tokens, 1 adapter": ([0], [512]),
    "512 tokens, 4 adapters": ([0, 1, 2, 3], [128] * 4),
    "32 streams, 4 adapters": ([0, 1, 2, 3] * 8, [1] * 32),
    "1 stream": ([1], [1]),
}


def layer(operations: ModuleType, slots: list[int], lengths: list[int]) -> Callable[[], torch.Tensor]:
    """A function that runs the LoRA products of one layer as vLLM's PunicaWrapperCPU does, and returns the outputs."""
    generator = torch.Generator().manual_seed(0)
    rows = sum(lengths)
    run_slots, run_lengths = torch.tensor(slots), torch.tensor(lengths)
    starts = run_lengths.cumsum(0) - run_lengths
    metadata = (starts, run_lengths, run_slots, len(slots), max(lengths), rows)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / 8

    work = [
        (
            random(rows, width),
            [random(SLOTS, 1, RANK, width) for _ in outs],
            [random(SLOTS, 1, out, RANK) for out in outs],
            outs,
        )
        for width, outs in LINEARS
    ]

    def run() -> torch.Tensor:
        results = []
        for x, a_stacked, b_stacked, outs in work:
            y, offset = torch.zeros(rows, sum(outs)), 0
            for a, b, out in zip(a_stacked, b_stacked, outs, strict=True):
                low = torch.zeros(rows, RANK)
                operations.sgmv_shrink(x, a, low, *metadata, 1.0)
                operations.sgmv_expand_slice(low, b, y, *metadata, offset, out, True)
                offset += out
            results.append(y)
        return torch.cat(results, dim=1)

    return run


def milliseconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="Grouped LoRA against vLLM's own CPU operations.")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    repetitions = 15 if parser.parse_args().quick else 60
    ratios: dict[str, float] = {}
    print(f"{'batch':24} {'stock ms':>10} {'grouped ms':>11} {'ratio':>7}   (one layer; the model has {LAYERS})")
    for name, (slots, lengths) in BATCHES.items():
        theirs, ours = layer(stock, slots, lengths), layer(grouped_lora, slots, lengths)
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-3)
        pairs = [(milliseconds(theirs), milliseconds(ours)) for _ in range(repetitions)]
        stock_ms, grouped_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios[name] = stock_ms / grouped_ms
        print(f"{name:24} {stock_ms:10.2f} {grouped_ms:11.3f} {ratios[name]:7.1f}")
    report(
        "the LoRA products of a 512-token prompt on CPU are faster grouped by adapter than with vLLM's own operations",
        ratios["512 tokens, 1 adapter"],
        "times faster, ratio of medians",
        ">= 10",
        "vLLM's torch operations, same process, interleaved",
        repetitions,
        all={name: round(ratio, 2) for name, ratio in ratios.items()},
    )


if __name__ == "__main__":
    main()
