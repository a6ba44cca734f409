"""
One run by several processes, a GPU each: `accelerate launch` starts them, PyTorch's DDP averages their gradients.

Every process reads the data and comes to the same plan; each computes its part of every step (`TokenBatches`), so that
loss and gradients are those of one process (tests/live/train/test_train_processes.py). The first process alone keeps
the job, the checkpoints, the loss curve and the adapter; the others follow it.

It imports torch and accelerate only inside functions.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ryorin.errors import RequirementMissing
from ryorin_train.checkpoints import CURVE_FILE, Checkpoints


def processes() -> int:
    """How many processes share the run, as the launcher says; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def follows() -> bool:
    """Whether this process follows another one that keeps the run."""
    return int(os.environ.get("RANK", "0")) > 0


def refuse_several(what: str) -> None:
    """Raises RequirementMissing when several processes were started for what is done by one."""
    if processes() > 1:
        raise RequirementMissing(f"{what} is done by one process, and {processes()} were started; start it by itself")


def wait_for_all() -> None:
    """Return when every process of the run is here; at once when there is one."""
    if processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=not _has_gpu()).wait_for_everyone()


def as_the_first_says(value: bool) -> bool:
    """The first process's value."""
    if processes() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    told = [value]
    broadcast_object_list(told)
    return told[0]


class FollowedCheckpoints(Checkpoints):
    """The first process's checkpoints as one that follows has them: it reads them, and writes a curve of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._scratch = tempfile.TemporaryDirectory(prefix="ryorin-")

    @property
    def curve(self) -> Path:
        """A copy of the loss curve."""
        return Path(self._scratch.name) / CURVE_FILE

    def take_curve(self) -> None:
        """Copy what an interrupted run wrote."""
        if super().curve.exists():
            shutil.copy(super().curve, self.curve)

    @contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """The first process sees to the disk and to the mark."""
        yield


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
