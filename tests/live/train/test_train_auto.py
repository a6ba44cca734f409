"""What `auto` chooses, why, and where that is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPT, a_dozen

from ryorin.catalog import open_catalog
from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin.errors import InvalidInput
from ryorin.settings import load_settings
from ryorin_train.auto import LEAST_STEPS, Facts, Wanted, decide, facts_of, said
from ryorin_train.data import example_of
from ryorin_train.recipe import PreferenceRecipe, Recipe

ORDINARY = Facts(rows=800, own_bytes=400_000, window=8192)


@pytest.mark.parametrize("kind", [Recipe, PreferenceRecipe])
def test_ordinary_data_gets_the_defaults_and_a_reason_for_each(kind: type[Recipe]) -> None:
    recipe, choices = decide(Wanted(kind, {"seed": 3}), ORDINARY)
    assert recipe == kind(seed=3)
    assert [choice.name for choice in choices] == [
        "epochs", "learning_rate", "batch_tokens", "max_row_tokens", "rank", "alpha"
    ]  # fmt: skip
    assert all(choice.why for choice in choices)
    assert f"auto: epochs {kind().epochs}: " in said(choices)[0]


def test_few_rows_are_shown_more_often_in_smaller_steps_and_many_less() -> None:
    few = Facts(rows=12, own_bytes=12 * 250)
    recipe, choices = decide(Wanted(Recipe), few)
    assert (recipe.epochs, recipe.batch_tokens) == (9, 128)
    assert "12 rows are few" in choices[0].why
    smaller, _ = decide(Wanted(Recipe), Facts(rows=40, own_bytes=4 * LEAST_STEPS * 600))
    assert (smaller.epochs, smaller.batch_tokens) == (3, 600)
    assert decide(Wanted(Recipe), Facts(rows=2, own_bytes=100))[0].epochs == 25
    assert decide(Wanted(Recipe), Facts(rows=10_000, own_bytes=10**7))[0].epochs == 2
    assert decide(Wanted(Recipe), Facts(rows=10**6, own_bytes=10**9))[0].epochs == 1
    assert decide(Wanted(PreferenceRecipe), few)[0].epochs == 1


def test_what_is_given_stays_and_the_start_and_the_base_decide_the_rest() -> None:
    start = {"rank": 8, "alpha": 64, "targets": ("q_proj",), "layers": 2, "rslora": True}
    facts = Facts(rows=800, own_bytes=400_000, window=512, start=start)
    recipe, choices = decide(Wanted(Recipe, {"epochs": 5, "batch_rows": 4, "rank": 16}), facts)
    assert recipe == Recipe(
        epochs=5, batch_rows=4, rank=16, alpha=64, targets=("q_proj",), layers=2, rslora=True, max_row_tokens=512
    )
    assert {choice.name for choice in choices} == {
        "learning_rate", "max_row_tokens", "alpha", "targets", "layers", "rslora"
    }  # fmt: skip
    with pytest.raises(InvalidInput, match="epochs is 0"):
        decide(Wanted(Recipe, {"epochs": 0}), facts)


def test_the_facts_are_counted_without_a_tokenizer() -> None:
    rows = [example_of(1, row) for row in a_dozen()]
    facts = facts_of(rows, 1024, None)
    assert facts.rows == 12 and 12 * 80 < facts.own_bytes < 12 * 160


def test_a_run_says_its_choices_and_keeps_them(
    cli: Any, home: Path, with_base: str, write_rows: Callable[..., Path]
) -> None:
    catalog = open_catalog(load_settings())
    with catalog.session() as session:
        set_prompt(session, create_tenant(session, "support"), PROMPT)
    catalog.close()
    words = ("train", "sft", "--tenant", "support", "--data", write_rows(a_dozen()), "--rank", "8", "--json")
    ran = cli(*words, "--learning-rate", "auto")
    assert ran.code == 0, ran.err
    assert "auto: epochs 9: 12 rows are few" in ran.err
    assert "auto: max row tokens 1024: the base model reads 1024 tokens" in ran.err
    name = json.loads(ran.out)["adapter"]
    manifest = json.loads((home / "adapters" / name / "manifest.json").read_text())
    assert manifest["auto"]["epochs"] == {"value": 9, "why": manifest["auto"]["epochs"]["why"]}
    assert "12 rows" in manifest["auto"]["epochs"]["why"] and "rank" not in manifest["auto"]
    whole = asdict(Recipe(epochs=9, rank=8, batch_tokens=128, max_row_tokens=1024))
    assert {name: whole[name] for name in ("epochs", "rank", "batch_tokens", "max_row_tokens")} == {
        name: manifest["recipe"][name] for name in ("epochs", "rank", "batch_tokens", "max_row_tokens")
    }
    same = cli(*words, "--epochs", "9", "--batch-tokens", "128")
    assert json.loads(same.out)["reused"] is True  # the same recipe is the same run, however it was decided
    grown = cli(*words[:-3], "--json", "--start-from", name, "--epochs", "1")  # without --rank
    assert grown.code == 0 and "auto: rank 8: of the adapter that training begins with" in grown.err
