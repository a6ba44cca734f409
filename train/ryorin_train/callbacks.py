"""
What the trainer calls while it runs: hands steps and epochs to progress.py, and asks for checkpoints.

Imports transformers, so it is imported inside the functions that train.
"""

from __future__ import annotations

import math
import time
from typing import Any

from transformers import TrainerCallback

from ryorin.errors import RyorinError
from ryorin_train.checkpoints import Checkpoints
from ryorin_train.processes import as_the_first_says, wait_for_all
from ryorin_train.progress import Progress

KEPT_OF_A_STEP = ("mean_token_accuracy", "reward_accuracy", "reward_margin", "kl")


class ProgressReporter(TrainerCallback):
    """
    Reports each step, and scores the held-out rows after each epoch. Raises RyorinError when the loss is not a number.

    row_tokens: the mean of the tokens of a step's rows. `held_out`: the last scores.
    """

    def __init__(self, trainer: Any, progress: Progress, row_tokens: float) -> None:
        self._trainer = trainer
        self._progress = progress
        self._row_tokens = row_tokens
        self.held_out: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The clock starts when training does."""
        self._progress.started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """One step's loss; the trainer logs every step."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise RyorinError(
                f"the loss is {logs['loss']} at step {state.global_step} of {state.max_steps}: training diverged. "
                "Lower --learning-rate, or look for broken rows",
                code="training_diverged",
            )
        more = {name: logs[name] for name in KEPT_OF_A_STEP if name in logs}
        self._progress.stepped(logs["loss"], round(self._row_tokens), more)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score the held-out rows."""
        if self._trainer.held_out is not None:
            began = time.monotonic()
            self.held_out = self._trainer.evaluate(metric_key_prefix="held_out")
            self._progress.pause(time.monotonic() - began)
            told = {name.replace("held_out_", "eval_", 1): value for name, value in self.held_out.items()}
            self._trainer.log(told)  # for trackers (trackers.py), which call held-out rows so
        self._progress.epoch_ended(round(state.epoch), self.held_out)


class CheckpointAsker(TrainerCallback):
    """
    Asks for a checkpoint every while, but not at an epoch's end, which could then not be told apart from the next one's
    beginning; marks it when it is written.
    """

    def __init__(self, checkpoints: Checkpoints, epoch_steps: int) -> None:
        self._checkpoints = checkpoints
        self._epoch_steps = epoch_steps
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Is it time?"""
        due = as_the_first_says(time.monotonic() - self._saved >= self._checkpoints.every_s)
        control.should_save = due and state.global_step % self._epoch_steps != 0

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """It is written, by every process its part."""
        wait_for_all()
        self._checkpoints.confirm(state.global_step)
        self._saved = time.monotonic()
