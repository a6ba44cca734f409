"""
What a training run tells: a line every few seconds for the person who watches, and the loss curve for the record.

Knows nothing of torch; trainer callbacks call it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVERY_S = 4.0


@dataclass(frozen=True)
class Listener:
    """
    Who follows a run. say: lines for a person. record: each line of the loss curve, with the number of steps.
    kept: each step that an interrupted run would now go on from. computing: whether all it does from now on is to
    compute, holding nothing that others wait for.
    """

    say: Callable[[str], None]
    record: Callable[[dict[str, Any]], None] = lambda values: None
    kept: Callable[[int], None] = lambda step: None
    computing: Callable[[bool], None] = lambda computing: None


ALIKE_STEPS = 5
OF_GRADES = {
    "flat_groups": "all answers to a prompt got the same grade, and nothing is learned from them; see the grader, "
    "raise --temperature or --answers, or begin with an adapter that is right at times (--start-from)",
    "graders_failed": "a grader failed on every answer, so that its failure grade stands for all; try it with one "
    "answer",
}  # figures of a step that are 1 when its grades are worth nothing


class Progress:
    """
    Counts steps and tokens, says a line at most every `EVERY_S` seconds, and appends to the loss curve.

    curve: a JSONL file; one line a step (`train_loss`) and one an epoch (`mean_train_loss`,
    and `held_out_loss` when rows are held out). Losses are nats a learned token. resumed: the step that the run
    continues from; the curve's lines up to it stay, later ones are written anew. `scored`: the lines of epochs.
    A line that the disk has no room for waits for the next one: see `complete`.
    """

    def __init__(self, listener: Listener, curve: Path, steps: int, epochs: int, resumed: int | None = None) -> None:
        self.say = listener.say
        self._listen = listener.record
        self.steps, self.epochs = steps, epochs
        self.step = self._resumed = resumed or 0
        self.tokens = 0
        self.recent: list[float] = []
        self.scored: list[dict[str, Any]] = []
        self._rewards: list[float] = []
        self._alike: dict[str, int] = {}
        kept = [] if resumed is None else [line for line in read_curve(curve) if line["step"] <= resumed]
        for line in kept:
            if "epoch" in line:
                self.scored.append(line)
                self.recent = []
            else:
                self.recent.append(line["train_loss"])
        _replace_curve(curve, kept)
        self._curve = curve.open("ab", buffering=0)
        self._unwritten = b""
        self.started = self._spoke = time.monotonic()
        self._paused_s = 0.0

    def stepped(self, loss: float, tokens: int, more: dict[str, float] | None = None) -> None:
        """A step ended. tokens: of its rows, with their prompts. more: what else is kept of it, by name."""
        self.step += 1
        self.tokens += tokens
        self.recent.append(loss)
        told = {f"train_{name}": round(value, 5) for name, value in (more or {}).items()}
        if "train_reward" in told:
            self._rewards.append(told["train_reward"])
        self._warn_of_grades(told)
        self._record({"step": self.step, "train_loss": round(loss, 5), **told})
        now = time.monotonic()
        if now - self._spoke >= EVERY_S or self.step == self.steps:
            self._spoke = now
            self.say(self.line(now))

    def _warn_of_grades(self, told: dict[str, float]) -> None:
        """Say once that grades teach nothing: when they did not in so many steps one after the other."""
        for name, why in OF_GRADES.items():
            self._alike[name] = self._alike.get(name, 0) + 1 if told.get(f"train_{name}") == 1 else 0
            if self._alike[name] == min(ALIKE_STEPS, self.steps):
                self.say(f"warning: in {self._alike[name]} steps {why}")

    def epoch_ended(self, epoch: int, held_out: dict[str, float]) -> None:
        """An epoch ended, with the scores of the held-out rows (empty when there are none)."""
        mean = sum(self.recent) / len(self.recent)
        self.recent = []
        scores = {name: round(value, 5) for name, value in held_out.items()}
        line = {"step": self.step, "epoch": epoch, "mean_train_loss": round(mean, 5), **scores}
        self.scored.append(line)
        self._record(line)
        told = f"epoch {epoch}/{self.epochs}: loss {mean:.4f}"
        if held_out:
            told += ", held out: " + ", ".join(
                f"{name.removeprefix('held_out_').replace('_', ' ')} "
                + (f"{value:.1%}" if name.endswith("accuracy") else f"{value:.4f}")
                for name, value in held_out.items()
            )
        self.say(told)

    def pause(self, seconds: float) -> None:
        """Time that was not training (scoring the held-out rows) and does not count in tokens a second."""
        self._paused_s += seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens of rows, prompts and answers, for each second of training so far."""
        return self.tokens / max(1e-9, time.monotonic() - self.started - self._paused_s)

    def line(self, now: float) -> str:
        """How far it is: steps, loss, speed, time left."""
        left = (now - self.started) / (self.step - self._resumed) * (self.steps - self.step)
        shown = self.recent[-20:]
        rewards = self._rewards[-20:]
        told = f"loss {sum(shown) / len(shown):.4f}  "
        if rewards:
            told = f"reward {sum(rewards) / len(rewards):.3f}  "
        return f"step {self.step}/{self.steps}  {told}{self.tokens_per_s:,.0f} tokens/s  {duration(left)} left"

    def complete(self) -> None:
        """Write what of the loss curve waits. Raises OSError when there is no room for it."""
        while self._unwritten:
            self._unwritten = self._unwritten[self._curve.write(self._unwritten) :]

    def close(self) -> None:
        """Close the loss curve."""
        self._curve.close()

    def _record(self, values: dict[str, Any]) -> None:
        self._write(values)
        self._listen({**values, "steps": self.steps})

    def _write(self, values: dict[str, Any]) -> None:
        self._unwritten += _curve_line(values)
        with contextlib.suppress(OSError):
            self.complete()


def read_curve(path: Path) -> list[dict[str, Any]]:
    """The lines of a loss curve; a last one that was cut off is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _replace_curve(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a loss curve in the place of the one that is there: a stop at any moment leaves one of both, whole."""
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.writelines(map(_curve_line, lines))
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def _curve_line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `48 s`, `2 min 05 s`, `1 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
