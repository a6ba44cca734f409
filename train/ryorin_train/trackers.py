"""
Where else the figures of a run go: TensorBoard, MLflow, Weights & Biases, by transformers' own integrations.

Each is a package of its own, which Ryorin does not install, and reads its own environment variables. What those leave
open goes under the home: `tensorboard/<run>/`, `mlflow.db`, `wandb/`. The loss curve of the adapter holds the same
figures without any of them, the loss that general texts take part in apart.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ryorin.errors import InvalidInput, RequirementMissing

TRACKERS = ("tensorboard", "mlflow", "wandb")  # names of transformers' integrations, and of the packages
EXPERIMENT = "ryorin"


@dataclass(frozen=True)
class Tracking:
    """Who hears of a run. names: of TRACKERS. home: where they write to by default. run: what the run is called."""

    names: Sequence[str]
    home: Path
    run: str


def check_trackers(names: Sequence[str]) -> None:
    """Raises InvalidInput for a tracker that is not known, RequirementMissing for one whose package is not there."""
    for name in names:
        if name not in TRACKERS:
            raise InvalidInput(f"report_to is {name!r}; known: {', '.join(TRACKERS)}", param="report_to")
        if find_spec(name) is None:
            raise RequirementMissing(
                f"--report-to {name} needs the package {name}; get it with: pip install {name}", param="report_to"
            )


def add_trackers(trainer: Any, tracking: Tracking, done: int | None) -> None:
    """
    Let the trackers hear what the trainer logs.

    done: the step that an interrupted run continues from; TensorBoard forgets what it heard of later ones.
    """
    from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

    trainer.args.run_name = tracking.run
    if "tensorboard" in tracking.names:
        from torch.utils.tensorboard import SummaryWriter

        folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(tracking.home / "tensorboard" / tracking.run)
        trainer.add_callback(TensorBoardCallback(SummaryWriter(folder, purge_step=(done or 0) + 1)))
    if "mlflow" in tracking.names:
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{tracking.home / 'mlflow.db'}")
        os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        trainer.add_callback(MLflowCallback())
    if "wandb" in tracking.names:
        os.environ.setdefault("WANDB_DIR", str(tracking.home))
        os.environ.setdefault("WANDB_PROJECT", EXPERIMENT)
        trainer.add_callback(WandbCallback())
