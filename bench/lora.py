"""
What an adapter costs on a CPU: tokens a second with one adapter, and with four in one batch, against the base model on
the same engine, reading prompts and writing answers; and the same on a stock vLLM.

Two real engines stand side by side, one with the plugin `ryorin_serve.grouped_lora`, one with vLLM's own LoRA
operations; one of them works at a time. The adapters have rank 16 on all linear layers of all 30 layers of the bundled
model. Reading: four prompts of about 500 tokens at once, new ones each time, until the last has its first token.
Writing: eight answers at once, and one alone, from first token to last. Rounds of all arms take turns. The value is the
smallest of the medians of ratios to the base model in the same round, each over its target.

    python bench/lora.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from common import report
from real import NEVER_ENDS, SERVED_AS, Place, adapters_of, engine_of, home_of, serving, tenant_of, together

TENANT = "bench"
SYSTEM = "You answer questions about a company's rules."
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS = {"one": 0.90, "four": 0.80}  # of the base model's tokens a second
PROMPTS, STREAMS = 4, 8
FILLER = "Returned goods are taken back within thirty days if the receipt is there and nothing was worn. "

_number = itertools.count()


def body(model: str, words: int, tokens: int) -> dict[str, Any]:
    """A request that nobody made before."""
    text = f"Case {next(_number)}: {FILLER * (words // 16)}What holds?"
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "logit_bias": NEVER_ENDS}


async def reading(engine: Place, models: Sequence[str], words: int) -> float:
    """Prompt tokens a second."""
    answers, _ = await together(engine, [body(models[each % len(models)], words, 1) for each in range(PROMPTS)])
    return sum(answer.prompt_tokens for answer in answers) / max(answer.first_s for answer in answers)


async def writing(engine: Place, models: Sequence[str], streams: int, tokens: int) -> float:
    """Tokens a second of all answers together, after the first."""
    answers, _ = await together(engine, [body(models[each % len(models)], 16, tokens) for each in range(streams)])
    return sum((answer.tokens - 1) / (answer.seconds - answer.first_s) for answer in answers)


async def load(engine: Place, folder: Path, names: Sequence[str]) -> None:
    headers = {"authorization": f"Bearer {engine.key}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        for name in names:
            given = {"lora_name": name, "lora_path": str((folder / name).resolve())}
            async with http.post(f"{engine.url}/load_lora_adapter", json=given) as answer:
                if answer.status != 200:
                    raise SystemExit(f"error: {answer.status} {await answer.text()}")


async def measured(
    engines: dict[str, Place], folder: Path, names: Sequence[str], rounds: int, words: int, tokens: int
) -> Any:
    """
    Ratios to the base model by (engine, work, adapters); and the base model's tokens a second.

    words: of a prompt that is read. tokens: of an answer that is written.
    """
    for engine in engines.values():
        await writing(engine, [SERVED_AS], 1, 4)  # promotions bring adapters to engines that have answered already
        await load(engine, folder, names)
    arms = {"base": [SERVED_AS], "one": names[:1], "four": names}
    works = {
        "reading": lambda engine, models: reading(engine, models, words),
        f"writing {STREAMS}": lambda engine, models: writing(engine, models, STREAMS, tokens),
        "writing 1": lambda engine, models: writing(engine, models, 1, tokens),
    }
    ratios: dict[tuple[str, str, str], list[float]] = {}
    base: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for (kind, engine), (work, rate) in itertools.product(engines.items(), works.items()):
            if kind == "stock" and number % 4 != 1:
                continue  # it stands beside, and takes most of the time
            chosen = [name for name in arms if work != "writing 1" or name != "four"]
            rates = {name: await rate(engine, arms[name]) for name in (chosen if number % 2 else reversed(chosen))}
            if number:  # nothing is cold
                base.setdefault((kind, work), []).append(rates["base"])
                for name in chosen[1:]:
                    ratios.setdefault((kind, work, name), []).append(rates[name] / rates["base"])
        print(f"round {number} of {rounds}", file=sys.stderr)
    return ratios, base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds with shorter texts instead of 12")
    rounds, words, tokens = (3, 128, 24) if parser.parse_args().quick else (12, 400, 48)
    with tempfile.TemporaryDirectory() as scratch:
        home = home_of(Path(scratch))
        tenant_of(home, TENANT, SYSTEM, "--adapter", "none", "--no-store")
        names = adapters_of(home, TENANT, range(4), targets=LINEARS)
        os.environ["RYORIN_HOME"] = str(home)
        options = ("--max-model-len", "2048", "--max-loras", "4", "--no-train")
        with serving(*options) as ours, serving(*options, "--stock-lora") as stock:
            engines = {"ours": engine_of(ours), "stock": engine_of(stock)}
            ratios, base = asyncio.run(measured(engines, home / "adapters", names, rounds, words, tokens))
    medians = {each: statistics.median(values) for each, values in ratios.items()}
    print(f"{'':14}{'adapters':>10}{'ours / base':>13}{'stock / base':>14}{'base tokens/s':>15}")
    for (kind, work, name), ratio in medians.items():
        if kind == "ours":
            beside, rate = medians[("stock", work, name)], statistics.median(base[("ours", work)])
            print(f"{work:14}{name:>10}{ratio:>13.3f}{beside:>14.3f}{rate:>15.1f}")
    report(
        "tokens a second with adapters on a CPU, against the base model on the same engine, over the target",
        min(ratio / TARGETS[name] for (kind, _, name), ratio in medians.items() if kind == "ours"),
        "times the target: 0.90 with one adapter, 0.80 with four",
        ">= 1",
        "the base model on the same engine; stock vLLM beside",
        rounds,
        **{
            kind: {f"{work}, {name}": round(ratio, 4) for (of, work, name), ratio in medians.items() if of == kind}
            for kind in engines
        },
    )


if __name__ == "__main__":
    main()
