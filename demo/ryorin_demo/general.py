"""
The general questions among the training examples, answered by the base model itself.

    python -m ryorin_demo.general     answers the questions of datasets/general.jsonl anew

Answers are greedy, at most 40 tokens long and cut to whole sentences; a question whose answer has none leaves the file.
Half of the questions have a `system` text of some assistant, half none: what is asked under each is answered under it,
since a model answers otherwise under another. Whoever changes the base model has to run this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ryorin.models.registry import DEFAULT_BASE, get_base
from ryorin.prompt import render
from ryorin.prompt_file import read_prompt_file
from ryorin.settings import load_settings
from ryorin_demo.data import GENERAL, general_messages, read_jsonl
from ryorin_demo.desks import COMPANY

MAX_TOKENS = 40
BATCH = 24
_SENTENCES = re.compile(r""".*(?:[.!?]["')]*(?=\s|\Z)|[。！？][」）]*)""", re.DOTALL)
_NUMBER = re.compile(r"\s*\n\d+\.\Z")


def whole_sentences(text: str) -> str:
    """The text up to the end of its last sentence, which a number of a list is none; '' when it has none."""
    found = _SENTENCES.match(text)
    return _NUMBER.sub("", found[0]) if found else ""


def main() -> None:
    """Write the answers into the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = get_base(load_settings(), DEFAULT_BASE).path
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompt = read_prompt_file(COMPANY.prompt_file)
    rows = read_jsonl(GENERAL)

    def answers(some: Sequence[dict[str, Any]]) -> list[str]:
        prompts = [
            tokenizer.apply_chat_template(
                render(prompt, general_messages(row), None), add_generation_prompt=True, tokenize=False
            )
            for row in some
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            made = model.generate(
                **inputs, max_new_tokens=MAX_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        told = []
        for tokens in made[:, inputs["input_ids"].shape[1] :].tolist():
            complete = tokenizer.eos_token_id in tokens
            text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            told.append(text if complete else whole_sentences(text))
        return told

    lines = []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        for row, answer in zip(some, answers(some), strict=True):
            if answer:
                lines.append(json.dumps({**row, "answer": answer}, ensure_ascii=False) + "\n")
    GENERAL.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
