"""
The gradients of one step of each method by the processes that a launcher started, or by this one alone.

    python two_processes.py BASE_FOLDER OUT_FILE

The first process writes {method: {"loss", "figures", "gradients"}} with torch.save.
"""

from __future__ import annotations

import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from test_train_kto import token_ratings
from test_train_preference import adapted

from ryorin_train.keeping import compute_kept
from ryorin_train.packing import PackedRows, TokenBatches, register_attention, shared_tokens
from ryorin_train.processes import as_the_first_says
from ryorin_train.recipe import PreferenceRecipe, RatingRecipe, Recipe
from ryorin_train.render import TokenPair, TokenRow, load_tokenizer
from ryorin_train.training import build_trainer, lora_config

SHAPE: dict[str, Any] = {"rank": 8, "alpha": 16, "targets": ("q_proj", "v_proj", "up_proj"), "batch_tokens": 10_000}


def rows_of(method: str) -> list[Any]:
    """Seven rows of very different lengths, so that parts of a step differ in what they weigh."""
    ratings = token_ratings([True, False, True, True, False, False, True])
    if method == "kto":
        return ratings
    if method == "dpo":
        return [TokenPair(row.prompt, row.chosen, row.rejected) for row in ratings]
    chance = random.Random(3)
    rows = [
        TokenRow(
            (*row.prompt, *(chance.randrange(3, 200) for _ in range(3 * n + 1))),
            (*(False for _ in row.prompt), *(True for _ in range(3 * n + 1))),
        )
        for n, row in enumerate(ratings)
    ]
    kept = replace(rows[2], kept=True, learned=(False, *[True] * (rows[2].tokens - 1)))
    if method == "kept":  # by one of the processes alone
        return [*rows[:2], kept, *rows[3:]]
    return [rows[3], kept] if method == "kept alone" else rows  # all that the second process has


def step_of(method: str, recipe: Recipe, base: Path, out: Path) -> dict[str, Any]:
    rows = rows_of(method)
    packing = adapted(base, register_attention())
    weights = {name: value.clone() for name, value in packing.state_dict().items() if "lora_" in name}
    packed = PackedRows(rows, shared_tokens(rows))
    model = packing.unload()
    packed.kept = compute_kept(model, packed, 1000) if method.startswith("kept") else None
    trainer = build_trainer(
        model, load_tokenizer(base), packed, None, recipe, lora_config(recipe, 3, base), 1, out.parent
    )
    trainer.prepare()
    trainer.model.load_state_dict(weights, strict=False)
    trainer.model.train()
    model = trainer.accelerator.prepare_model(trainer.model)
    ((batch,),) = trainer.get_train_dataloader()  # one step, of one part
    assert len(batch["rows"]) == len(rows[trainer.accelerator.process_index :: trainer.accelerator.num_processes])
    loss = trainer.compute_loss(model, batch)
    trainer.accelerator.backward(loss)
    return {
        "loss": trainer.accelerator.reduce(loss.detach(), "mean").item(),
        "figures": {name: values[0] for name, values in trainer._metrics["train"].items()},
        "gradients": {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None},
    }


def main() -> None:
    base, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    PartialState(cpu=True)
    recipes: dict[str, Recipe] = {
        "sft": Recipe(**SHAPE),
        "kept": Recipe(**SHAPE),
        "kept alone": Recipe(**SHAPE),
        "dpo": PreferenceRecipe(**SHAPE, beta=0.3, chosen_weight=0.5),
        "kto": RatingRecipe(**SHAPE, beta=0.3, good_weight=1.5, bad_weight=0.7),
    }
    found = {method: step_of(method, recipe, base, out) for method, recipe in recipes.items()}
    first = os.environ.get("RANK", "0") == "0"
    assert as_the_first_says(first) is True
    assert len(TokenBatches([5, 5, 90, 5], 10, 0, processes=2)) == 2
    if first:
        torch.save(found, out)


if __name__ == "__main__":
    main()
