"""
What the trainer calls while it runs: hands steps and epochs to progress.py.

Imports transformers, so it is imported inside the functions that train.
"""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from ryorin_train.progress import Progress


class ProgressReporter(TrainerCallback):
    """
    Reports each step, and scores the held-out rows after each epoch.

    row_tokens: the mean of the tokens of a step's rows. `held_out`: the last scores.
    """

    def __init__(self, trainer: Any, progress: Progress, row_tokens: float) -> None:
        self._trainer = trainer
        self._progress = progress
        self._row_tokens = row_tokens
        self._epochs = 0
        self.held_out: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts when training does."""
        self._progress.started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """One step's loss; the trainer logs every step."""
        if logs and "loss" in logs:
            self._progress.stepped(logs["loss"], round(self._row_tokens))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score the held-out rows."""
        self._epochs += 1
        if self._trainer.held_out is not None:
            began = time.monotonic()
            self.held_out = self._trainer.evaluate(metric_key_prefix="held_out")
            self._progress.pause(time.monotonic() - began)
        self._progress.epoch_ended(self._epochs, self.held_out)
