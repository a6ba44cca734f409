"""
What the trainer calls while it runs: hands steps and epochs to progress.py, and asks for checkpoints.

Imports transformers, so it is imported inside the functions that train.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback

from ryorin.errors import RyorinError
from ryorin_train.checkpoints import Checkpoints
from ryorin_train.processes import as_the_first_says, wait_for_all
from ryorin_train.progress import Listener, Progress

KEPT_OF_A_STEP = (
    "reward",
    "reward_deviation",
    "flat_groups",
    "answer_tokens",
    "cut_off",
    "graders_failed",
    "kl",
    "clipped",
    "mean_token_accuracy",
    "base_divergence",
    "reward_accuracy",
    "reward_margin",
    "accuracy",
    "margin",
)

GRADE = "grade_"  # of one grader of several


class ProgressReporter(TrainerCallback):
    """
    Reports each step, and scores the held-out rows after each epoch. Raises RyorinError when a loss, the gradient or a
    score is not a finite number, before anything is kept of it.

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
        _check_finite({name: logs[name] for name in ("loss", "grad_norm") if name in logs}, state)
        more = {name: value for name, value in logs.items() if name in KEPT_OF_A_STEP or name.startswith(GRADE)}
        loss = logs.get("answer_loss", logs["loss"])  # beside general texts that are kept
        self._progress.stepped(loss, round(self._row_tokens), more)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score the held-out rows."""
        if self._trainer.held_out is not None:
            began = time.monotonic()
            self.held_out = self._trainer.evaluate(metric_key_prefix="held_out")
            self._progress.pause(time.monotonic() - began)
            _check_finite(self.held_out, state)
            told = {name.replace("held_out_", "eval_", 1): value for name, value in self.held_out.items()}
            self._trainer.log(told)  # for trackers (trackers.py), which call held-out rows so
        self._progress.epoch_ended(round(state.epoch), self.held_out)


def _check_finite(values: Mapping[str, float], state: Any) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            what = {"grad_norm": "length of the gradient"}.get(name, name.replace("_", " "))
            raise RyorinError(
                f"the {what} is {value} at step {state.global_step} of {state.max_steps}: training diverged. "
                "Lower --learning-rate, or look for broken rows",
                code="training_diverged",
            )


class CheckpointAsker(TrainerCallback):
    """
    Asks for a checkpoint every while: after a step, or at an epoch's end once its line is written; not at the run's,
    and not between the `rounds` steps that learn from the same answers.

    One that cannot be written, on a full disk for one, is said once, and training goes on with the last good one.
    """

    def __init__(
        self,
        trainer: Any,
        checkpoints: Checkpoints,
        progress: Progress,
        listener: Listener,
        epoch_steps: int,
        rounds: int = 1,
    ) -> None:
        trainer.saving = self._saving
        self._rounds = rounds
        self._checkpoints = checkpoints
        self._progress = progress
        self._listener = listener
        self._epoch_steps = epoch_steps
        self._tried = time.monotonic()
        self._said = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Is it time?"""
        between = state.global_step % self._rounds != 0 or state.global_step % self._epoch_steps == 0
        control.should_save = self._due() and not between

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Is it time?"""
        control.should_save = self._due() and state.global_step < state.max_steps

    def _due(self) -> bool:
        return as_the_first_says(time.monotonic() - self._tried >= self._checkpoints.every_s)

    @contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        try:
            with self._checkpoints.writing(step):
                try:
                    yield
                except Exception:
                    wait_for_all()
                    raise
                wait_for_all()  # every process has written its part
                self._progress.complete()
        except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError is PyTorch's for a full disk
            if not self._said:
                self._said = True
                self._listener.say(
                    f"warning: no checkpoint at step {step}: {error}; training goes on, and an interruption costs what "
                    "was trained since the last one. Make room on the disk"
                )
        else:
            self._said = False
            self._listener.kept(step)
        self._tried = time.monotonic()
