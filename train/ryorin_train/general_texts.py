"""
General texts: short questions and requests to an assistant, with answers, of many kinds and in some languages.

A run may be held on them to what its base model says (keeping.py), whichever that is: the texts are only where it is
asked. They were written for this, most answers by the bundled base model. None is nearly the same as a question that
general ability is judged by (judging/ability.jsonl).
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ryorin.digests import sha256_bytes
from ryorin.errors import InvalidInput
from ryorin.prompt import Message, Prompt
from ryorin_train.data import Example
from ryorin_train.render import Renderer, TokenRow

WEIGHT = 4.0
"""Of a text's token, where a learned one has 1; by 1 the demo's adapters moved half as far again (docs/log.md)."""
FILE = Path(__file__).parent / "general_texts.jsonl"


@cache
def general_texts() -> tuple[Example, ...]:
    """The texts, as shipped."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return tuple(_example(line, json.loads(text)) for line, text in enumerate(lines, start=1))


def texts_spec(count: int) -> dict[str, Any]:
    """What of the texts decides which adapter comes out, for digests and manifests; nothing for none of them."""
    if not count:
        return {}
    return {"general_texts": {"digest": sha256_bytes(FILE.read_bytes()), "rows": count, "weight": WEIGHT}}


def kept_rows(tokenizer: Any, count: int, seed: int, max_row_tokens: int) -> list[TokenRow]:
    """
    `count` of the texts as rows that are kept, drawn by the seed from those that this base model can read in so many
    tokens; all of their tokens count but the first. Raises InvalidInput when there are fewer.
    """
    renderer = Renderer(tokenizer, Prompt(system=""), max_row_tokens)
    rows: list[TokenRow] = []
    refused = ValueError()
    for text in random.Random(seed).sample(general_texts(), len(general_texts())):
        if len(rows) == count:
            break
        try:
            row = renderer.row(text)
        except ValueError as error:
            refused = error
            continue
        rows.append(replace(row, kept=True, learned=(False, *[True] * (row.tokens - 1))))
    if len(rows) < count:
        raise InvalidInput(
            f"keep_general is {count}; of the general texts {len(rows)} can be used, the last was refused: {refused}",
            param="keep_general",
        )
    return rows


def _example(line: int, row: dict[str, str]) -> Example:
    system: list[Message] = [{"role": "system", "content": row["system"]}] if "system" in row else []
    messages: list[Message] = [
        *system,
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": row["answer"]},
    ]
    return Example(line, tuple(messages), (*[False] * (len(messages) - 1), True), None)
