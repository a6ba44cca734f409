"""Trackers: what TensorBoard, MLflow and W&B are told of a run on the tiny model, and where it lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPT, a_dozen

from ryorin.catalog import open_catalog
from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin.settings import load_settings
from ryorin_train import trackers
from ryorin_train.trackers import TRACKERS

QUICK = ("--epochs", "2", "--batch-tokens", "400", "--rank", "8", "--max-row-tokens", "500", "--held-out", "0.3")


@pytest.fixture
def run(cli: Any, home: Path, with_base: str, write_rows: Callable[..., Path], monkeypatch: Any) -> Callable[..., Any]:
    for name in [name for name in os.environ if name.startswith(("TENSORBOARD_", "MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    catalog = open_catalog(load_settings())
    with catalog.session() as session:
        set_prompt(session, create_tenant(session, "support"), PROMPT)
    catalog.close()
    return lambda *more: cli("train", "sft", "--tenant", "support", "--data", write_rows(a_dozen()), *QUICK, *more)


def needs(package: str) -> Any:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"the package {package} is not installed")


@needs("tensorboard")
def test_tensorboard_gets_every_step_and_the_held_out_rows(run: Callable[..., Any], home: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run("--report-to", "tensorboard").code == 0
    assert run("--report-to", "tensorboard", "--again").code == 0  # the same run: what it told before is forgotten
    (folder,) = (home / "tensorboard").iterdir()
    assert folder.name.startswith("support-sft-")
    told = EventAccumulator(str(folder)).Reload()
    losses = told.Scalars("train/loss")
    assert [each.step for each in losses] == list(range(1, len(losses) + 1)) and len(losses) >= 4
    assert len(told.Scalars("eval/loss")) == 2
    assert 0 <= told.Scalars("eval/answer_accuracy")[-1].value <= 1


@needs("mlflow")
def test_mlflow_gets_a_run_in_a_database_of_the_home(run: Callable[..., Any], home: Path, monkeypatch: Any) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")  # as it is without, and undone after
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ryorin")
    assert run("--report-to", "mlflow").code == 0
    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ryorin")
    (told,) = client.search_runs([experiment.experiment_id])
    assert told.info.run_name.startswith("support-sft-") and told.info.status == "FINISHED"
    assert len(client.get_metric_history(told.info.run_id, "loss")) >= 4
    assert len(client.get_metric_history(told.info.run_id, "eval_loss")) == 2


@needs("wandb")
def test_wandb_writes_to_the_home_when_it_is_offline(run: Callable[..., Any], home: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(home))
    monkeypatch.setenv("WANDB_PROJECT", "ryorin")
    assert run("--report-to", "wandb").code == 0
    assert list((home / "wandb").glob("offline-run-*/*.wandb"))


def test_what_cannot_be_told_is_refused_before_training(
    run: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run("--report-to", "excel")
    assert ran.code == 2 and "report_to is 'excel'; known: tensorboard, mlflow, wandb" in ran.err
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name in TRACKERS:
        ran = run("--report-to", name)
        assert ran.code == 2 and f"--report-to {name} needs the package {name}; get it with: pip install" in ran.err
    assert not (home / "jobs").exists() or not list((home / "jobs").iterdir())
