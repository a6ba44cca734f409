"""
What a training run tells: a line every few seconds for the person who watches, and the loss curve for the record.

Knows nothing of torch; trainer callbacks call it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

EVERY_S = 4.0


class Progress:
    """
    Counts steps and tokens, says a line at most every `EVERY_S` seconds, and appends to the loss curve.

    say: where lines go. curve: a JSONL file; one line a step (`train_loss`) and one an epoch (`mean_train_loss`,
    and `held_out_loss` when rows are held out). Losses are nats a learned token.
    """

    def __init__(self, say: Callable[[str], None], curve: Path, steps: int, epochs: int) -> None:
        self._say = say
        self._curve: TextIO = curve.open("w", encoding="utf-8")
        self.steps, self.epochs = steps, epochs
        self.step = 0
        self.tokens = 0
        self.recent: list[float] = []
        self.train_losses: list[float] = []
        self.started = self._spoke = time.monotonic()
        self._paused_s = 0.0

    def stepped(self, loss: float, tokens: int) -> None:
        """A step ended. tokens: of its rows, with their prompts."""
        self.step += 1
        self.tokens += tokens
        self.recent.append(loss)
        self._record({"step": self.step, "train_loss": round(loss, 5)})
        now = time.monotonic()
        if now - self._spoke >= EVERY_S or self.step == self.steps:
            self._spoke = now
            self._say(self.line(now))

    def epoch_ended(self, epoch: int, held_out: dict[str, float]) -> None:
        """An epoch ended, with the scores of the held-out rows (empty when there are none)."""
        mean = sum(self.recent) / len(self.recent)
        self.train_losses.append(mean)
        self.recent = []
        scores = {name: round(value, 5) for name, value in held_out.items()}
        self._record({"step": self.step, "epoch": epoch, "mean_train_loss": round(mean, 5), **scores})
        told = f"epoch {epoch}/{self.epochs}: loss {mean:.4f}"
        if held_out:
            told += (
                f", held-out loss {held_out['held_out_loss']:.4f},"
                f" tokens right {held_out['held_out_token_accuracy']:.1%},"
                f" answers right {held_out['held_out_answer_accuracy']:.1%}"
            )
        self._say(told)

    def pause(self, seconds: float) -> None:
        """Time that was not training (scoring the held-out rows) and does not count in tokens a second."""
        self._paused_s += seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens of rows, prompts and answers, for each second of training so far."""
        return self.tokens / max(1e-9, time.monotonic() - self.started - self._paused_s)

    def line(self, now: float) -> str:
        """How far it is: steps, loss, speed, time left."""
        left = (now - self.started) / self.step * (self.steps - self.step)
        shown = self.recent[-20:]
        return (
            f"step {self.step}/{self.steps}  loss {sum(shown) / len(shown):.4f}  "
            f"{self.tokens_per_s:,.0f} tokens/s  {duration(left)} left"
        )

    def close(self) -> None:
        """Close the loss curve."""
        self._curve.close()

    def _record(self, values: dict[str, Any]) -> None:
        self._curve.write(json.dumps(values) + "\n")
        self._curve.flush()


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `48 s`, `2 min 05 s`, `1 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
