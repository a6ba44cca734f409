"""Early stopping and sweeps on the tiny model: which weights are kept, what an interruption costs, what is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPT, a_dozen

from ryorin.catalog import open_catalog
from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin.errors import RyorinError
from ryorin.settings import load_settings
from ryorin_train import checkpoints, job, progress
from ryorin_train.quality import best_of, deciding, quality

COMMON = ("--batch-tokens", "400", "--rank", "8", "--held-out", "0.3", "--json")


@pytest.fixture
def run(cli: Any, home: Path, with_base: str, write_rows: Callable[..., Path]) -> Callable[..., Any]:
    """`run(verb, *options, tenant=…)`: the command on a dozen rows."""
    catalog = open_catalog(load_settings())
    with catalog.session() as session:
        for name in ("support", "other"):
            set_prompt(session, create_tenant(session, name), PROMPT)
    catalog.close()

    def ran(verb: str, *options: str, tenant: str = "support") -> Any:
        return cli("train", verb, "--tenant", tenant, "--data", write_rows(a_dozen()), *COMMON, *options)

    return ran


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The recipes that were really trained."""
    recipes: list[Any] = []
    train = job.train

    def counted(base: Path, training: Any, held_out: Any, recipe: Any, *more: Any) -> Any:
        recipes.append(recipe)
        return train(base, training, held_out, recipe, *more)

    monkeypatch.setattr(job, "train", counted)
    return recipes


def adapters(home: Path) -> set[str]:
    return {path.name for path in (home / "adapters").iterdir()}


def test_answers_decide_before_tokens_and_tokens_before_the_loss() -> None:
    def scores(answers: float, tokens: float, loss: float) -> dict[str, float]:
        return {"held_out_loss": loss, "held_out_token_accuracy": tokens, "held_out_answer_accuracy": answers}

    assert quality(scores(0.5, 0.8, 2.0)) > quality(scores(0.4, 0.9, 1.0))
    assert quality(scores(0.0, 0.8, 2.0)) > quality(scores(0.0, 0.7, 1.0))
    assert quality(scores(0.0, 0.7, 1.0)) > quality(scores(0.0, 0.7, 1.1))
    assert best_of([scores(0.1, 0, 1), scores(0.2, 0, 1), scores(0.2, 0, 1)]) == 1 and best_of([]) is None
    assert deciding({"held_out_loss": 1.0}) == "held_out_loss" and deciding(scores(0, 0, 0)).endswith("answer_accuracy")


def test_a_run_stops_when_nothing_gets_better_and_keeps_the_best_epochs_weights(
    run: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    from ryorin_train.trainer import PackedTrainer

    script, weights = [0.5, 0.8, 0.7, 0.6, 0.9], []

    def scored(self: Any, *_: Any, metric_key_prefix: str, **__: Any) -> dict[str, float]:
        weights.append({name: p.detach().clone() for name, p in self.model.named_parameters() if "lora_B" in name})
        place = len(weights) - 1
        return {
            f"{metric_key_prefix}_answer_accuracy": script[place],
            f"{metric_key_prefix}_loss": 1.0 + place,
        }

    monkeypatch.setattr(PackedTrainer, "evaluate", scored)
    ran = run("sft", "--epochs", "5", "--patience", "2", "--layers", "2")
    assert ran.code == 0, ran.err
    assert "stopped after epoch 4: held out answer accuracy was best after epoch 2, whose weights are kept" in ran.err
    result = json.loads(ran.out)
    assert result["metrics"]["held_out_answer_accuracy"] == 0.8
    folder = home / "adapters" / result["adapter"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["best_epoch"], manifest["recipe"]["patience"]) == (2, 2)
    curve = progress.read_curve(folder / "loss.jsonl")
    epochs = [line for line in curve if "epoch" in line]
    assert len(epochs) == 4 and result["metrics"]["train_loss"] == epochs[1]["mean_train_loss"]
    kept = load_file(folder / "adapter_model.safetensors")
    second = {name.replace(".default", ""): tensor for name, tensor in weights[1].items()}
    assert len(second) == 14
    for name, tensor in second.items():
        assert torch.equal(kept[name], tensor), name
    assert not list((home / "checkpoints").iterdir())


def test_an_interrupted_run_with_patience_ends_as_one_that_was_not(
    run: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    ended = progress.Progress.epoch_ended

    def interrupt(self: Any, epoch: int, scores: dict[str, float]) -> None:
        ended(self, epoch, scores)
        if epoch == 4:
            raise KeyboardInterrupt

    words = ("sft", "--epochs", "6", "--patience", "5", "--learning-rate", "0.02", "--batch-tokens", "200")
    monkeypatch.setattr(progress.Progress, "epoch_ended", interrupt)
    assert run(*words).code == 130
    assert list(home.glob("checkpoints/*/best-*/adapter_model.safetensors"))
    monkeypatch.setattr(progress.Progress, "epoch_ended", ended)
    again, whole = run(*words), run(*words, tenant="other")
    assert "continued at step" in again.err and "continued" not in whole.err
    assert json.loads(again.out)["digest"] == json.loads(whole.out)["digest"]
    assert json.loads(again.out)["metrics"] == json.loads(whole.out)["metrics"]
    assert not list((home / "checkpoints").iterdir())


def test_a_disk_that_has_no_room_for_the_best_weights_ends_the_run_with_the_reason(
    run: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    from ryorin_train.best import BestEpoch

    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    keep, limit, tried = BestEpoch._keep, resource.getrlimit(resource.RLIMIT_FSIZE), []

    def full(self: Any) -> None:
        tried.append(1)
        room = limit[0] if len(tried) == 1 else 1000  # bytes: the second better epoch finds a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
        try:
            keep(self)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    words = ("sft", "--epochs", "4", "--patience", "4", "--learning-rate", "0.02")
    with monkeypatch.context() as patch:
        patch.setattr(BestEpoch, "_keep", full)
        ran = run(*words)
    assert ran.code not in (0, 130) and len(tried) == 2
    assert "the best so far, cannot be kept: " in ran.err and "Make room on the disk" in ran.err
    assert "Traceback" not in ran.err
    assert len(list(home.glob("checkpoints/*/best-*/adapter_model.safetensors"))) == 1
    again, whole = run(*words), run(*words, tenant="other")
    assert "continued at step" in again.err
    assert json.loads(again.out)["digest"] == json.loads(whole.out)["digest"]


def test_patience_needs_held_out_rows(run: Callable[..., Any]) -> None:
    for verb, *more in (("sft", "--patience", "2"), ("sweep", "--learning-rate", "0.01")):
        ran = run(verb, *more, "--held-out", "0")
        assert ran.code == 2 and "patience goes by the held-out rows, and there are none" in ran.err


GRID = ("--learning-rate", "1e-8,0.02", "--epochs", "1,3")


def test_a_sweep_leaves_the_best_adapter_alone_and_is_not_repeated(
    run: Callable[..., Any], home: Path, trained: list[Any]
) -> None:
    before = json.loads(run("sft", "--learning-rate", "1e-8", "--epochs", "1", "--patience", "2").out)["adapter"]
    trained.clear()
    ran = run("sweep", *GRID)
    assert ran.code == 0, ran.err
    swept = json.loads(ran.out)
    assert [trial["values"] for trial in swept["trials"]] == [
        {"learning_rate": rate, "epochs": epochs, "rank": 8} for rate in (1e-8, 0.02) for epochs in (1, 3)
    ]
    assert swept["trials"][0]["reused"] and swept["trials"][0]["adapter"] == before
    assert [(recipe.learning_rate, recipe.epochs, recipe.patience) for recipe in trained] == [
        (1e-8, 3, 2), (0.02, 1, 2), (0.02, 3, 2)
    ]  # fmt: skip
    qualities = [quality(trial["metrics"]) for trial in swept["trials"]]
    assert swept["best"] == qualities.index(max(qualities)) == 3
    assert swept["adapter"] == swept["trials"][3]["adapter"] and swept["decided_by"] == "held_out_answer_accuracy"
    assert adapters(home) == {before, swept["adapter"]}  # what was there before stays; the losers are gone
    manifest = json.loads((home / "adapters" / swept["adapter"] / "manifest.json").read_text())
    assert manifest["sweep"] == swept["sweep"]
    assert not list((home / "jobs").iterdir()) and not list((home / "checkpoints").iterdir())

    trained.clear()
    again = json.loads(run("sweep", *GRID).out)
    assert (again["trials"], again["adapter"], trained) == (swept["trials"], swept["adapter"], [])


def test_an_interrupted_sweep_goes_on_where_it_was(
    run: Callable[..., Any], home: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    counted = job.train

    def interrupted(*arguments: Any) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        return counted(*arguments)

    monkeypatch.setattr(job, "train", interrupted)
    assert run("sweep", *GRID).code == 130
    assert len(adapters(home)) == 1 and not list((home / "jobs").iterdir())
    monkeypatch.setattr(job, "train", counted)
    trained.clear()
    swept = json.loads(run("sweep", *GRID).out)
    assert [(recipe.learning_rate, recipe.epochs) for recipe in trained] == [(0.02, 1), (0.02, 3)]
    assert adapters(home) == {swept["adapter"]}

    assert cli("adapter", "delete", swept["adapter"]).code == 0  # then it alone is trained again
    trained.clear()
    again = json.loads(run("sweep", *GRID).out)
    assert [(recipe.learning_rate, recipe.epochs) for recipe in trained] == [(0.02, 3)]
    assert again["adapter"] == swept["adapter"] and adapters(home) == {swept["adapter"]}


def test_a_trial_that_diverges_is_told_and_does_not_end_the_sweep(
    run: Callable[..., Any], home: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = job.train

    def diverging(base: Path, training: Any, held_out: Any, recipe: Any, *more: Any) -> Any:
        if recipe.learning_rate > 0.01:
            raise RyorinError("the loss is nan at step 3 of 9", code="training_diverged")
        return counted(base, training, held_out, recipe, *more)

    monkeypatch.setattr(job, "train", diverging)
    ran = run("sweep", "--learning-rate", "0.5,0.001", "--epochs", "1")
    swept = json.loads(ran.out)
    assert "nan" in swept["trials"][0]["error"] and swept["best"] == 1
    assert adapters(home) == {swept["adapter"]}
    ran = run("sweep", "--learning-rate", "0.5,0.6", "--epochs", "1")
    assert ran.code != 0 and "all 2 trials diverged; give lower learning rates" in ran.err


def test_the_table_names_the_best(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "COMMON", COMMON[:-1])
    ran = run("sweep", "--learning-rate", "1e-8,0.02", "--epochs", "2")
    head, first, second, name = ran.out.splitlines()
    assert head.split()[:3] == ["learning", "rate", "epochs"] and "answer accuracy" in head
    assert second.rstrip().endswith("best") and "best" not in first
    assert name.startswith("support-") and "it was chosen on these rows" in ran.err
