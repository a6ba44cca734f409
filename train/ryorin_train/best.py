"""
Early stopping: the weights of the best epoch are kept, and a run ends when no epoch was better for a while.

Kept weights lie in the run's folder of checkpoints (`best-<step>/`), so an interrupted run goes on with them. What was
best is read from the loss curve, which an interruption cuts back to the checkpoint: of later epochs nothing is known.

Imports torch, so it is imported inside the functions that train.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import TrainerCallback

from ryorin.adapter_files import WEIGHTS_FILE
from ryorin.blobs import sync_path
from ryorin.errors import RyorinError
from ryorin_train.checkpoints import Checkpoints
from ryorin_train.processes import follows
from ryorin_train.progress import Progress
from ryorin_train.quality import best_of, deciding

PREFIX = "best-"


class BestEpoch(TrainerCallback):
    """
    Keeps the best epoch's weights, and stops after `patience` epochs without a better one.

    It must be called after the epoch was scored: add it behind ProgressReporter. Raises RyorinError when the weights
    cannot be written, on a full disk for one: without them the run would end with nothing to keep.
    """

    def __init__(self, trainer: Any, progress: Progress, checkpoints: Checkpoints, patience: int) -> None:
        self._trainer, self._progress, self._checkpoints = trainer, progress, checkpoints
        self._patience = patience

    @property
    def line(self) -> dict[str, Any]:
        """The best epoch's line of the loss curve."""
        place = best_of(self._progress.scored)
        assert place is not None
        return self._progress.scored[place]

    @property
    def folder(self) -> Path:
        """Where its weights lie."""
        return self._folder(self.line["step"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the weights, or count."""
        best, last = self.line, self._progress.scored[-1]
        if best is last and not follows():
            try:
                self._keep()
            except (OSError, SafetensorError) as error:
                raise RyorinError(
                    f"the weights of epoch {best['epoch']}, the best so far, cannot be kept: {error}. Make room on the "
                    "disk and run the same again: it goes on from the last checkpoint"
                ) from error
        elif last["epoch"] - best["epoch"] >= self._patience and last["epoch"] < self._progress.epochs:
            control.should_training_stop = True
            self._progress.say(
                f"stopped after epoch {last['epoch']}: {deciding(best).replace('_', ' ')} was best after epoch "
                f"{best['epoch']}, whose weights are kept"
            )

    def _keep(self) -> None:
        step = self.line["step"]
        fresh = self._folder(step).with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        weights = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(self._trainer.model).items()}
        save_file(weights, fresh / WEIGHTS_FILE)
        with (fresh / WEIGHTS_FILE).open("rb") as written:
            os.fsync(written.fileno())
        shutil.rmtree(self._folder(step), ignore_errors=True)
        fresh.rename(self._folder(step))
        sync_path(self._checkpoints.folder)
        # After an interruption the run goes on from a checkpoint: the best one up to there is still needed.
        marked = self._checkpoints.latest()
        known = sorted(int(path.name.removeprefix(PREFIX)) for path in self._checkpoints.folder.glob(f"{PREFIX}*[0-9]"))
        needed = {step, *[each for each in known if marked is not None and each <= marked[0]][-1:]}
        for each in known:
            if each not in needed:
                shutil.rmtree(self._folder(each), ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self._checkpoints.folder / f"{PREFIX}{step}"
