"""
A sweep: the same data trained with every combination of some hyperparameters; the best adapter stays.

A trial is a run like any other (job.py), with early stopping: what an interrupted one left is continued, a finished one
is found again. What each gave is written to `<home>/sweeps/<digest>/trials.json` when it is done, and of two adapters
the worse one is deleted at once, so at no moment more than the best so far is left behind.

The trials are judged on the held-out rows (quality.py). The best of many is partly lucky there: what it is worth is for
`ryorin train evaluate` to say, on cases that chose nothing.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryorin.adapter_files import is_whole
from ryorin.digests import digest_of
from ryorin.errors import Conflict, InvalidInput, RyorinError
from ryorin_train import TRAINER_VERSION
from ryorin_train.adapters import delete_adapter, list_adapters
from ryorin_train.auto import Wanted
from ryorin_train.data import dataset_digest
from ryorin_train.datasets.store import open_data
from ryorin_train.general_texts import texts_spec
from ryorin_train.processes import refuse_several
from ryorin_train.progress import Listener
from ryorin_train.quality import best_of, deciding

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin_train.job import Finished, Request

SWEPT = ("learning_rate", "epochs", "rank")
PATIENCE = 2
SWEEPS, TRIALS, LOCK = "sweeps", "trials.json", "lock"
DIVERGED = "training_diverged"


@dataclass(frozen=True)
class Swept:
    """
    What a sweep gave. best: the place of the best trial. trials: for each its values, and adapter, metrics, best_epoch,
    epochs (that were trained) and seconds, or the error that ended it.
    """

    digest: str
    best: int
    trials: list[dict[str, Any]]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The result of `ryorin train sweep --json`."""
        return {
            "sweep": self.digest,
            "adapter": self.trials[self.best]["adapter"],
            "metrics": self.trials[self.best]["metrics"],
            "decided_by": deciding(self.trials[self.best]["metrics"]),
            "best": self.best,
            "trials": self.trials,
            "seconds": self.seconds,
        }


def run_sweep(
    catalog: Catalog,
    method: Callable[..., Finished],
    request: Request,
    wanted: Wanted,
    grid: Mapping[str, Sequence[Any]],
    listener: Listener,
) -> Swept:
    """
    Train every combination of the grid's values and keep the best adapter.

    method: `job.run_sft` or another. wanted: of every trial; without a patience it gets PATIENCE. grid: of each of
    SWEPT the values to try. A trial whose loss stops being a number is told as such and does not end the sweep.
    Raises what the method raises; Conflict while another process runs the same sweep.
    """
    refuse_several("a sweep")
    began, say = time.monotonic(), listener.say
    if wanted.given.get("patience") is None:
        wanted = replace(wanted, given={**wanted.given, "patience": PATIENCE})
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    request, digest = _identified(catalog, request, wanted, grid, method.__name__)
    with _state(catalog.settings.home / SWEEPS / digest[:32]) as path:
        known = [] if request.again else _known(catalog, path)
        trials: list[dict[str, Any]] = []
        for number, values in enumerate(combinations, start=1):
            told = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in values.items())
            say(f"trial {number} of {len(combinations)}: {told}")
            done = next((trial for trial in known if trial["values"] == values), None)
            trials.append(done or _trial(catalog, method, request, wanted, values, listener))
            others = [trial for trial in known if trial["values"] not in [each["values"] for each in trials]]
            _write(path, [*trials, *others])
            _tidy(catalog, request, digest, [*trials, *others], say)
    scored = [trial for trial in trials if "error" not in trial]
    if not scored:
        raise RyorinError(
            f"all {len(trials)} trials diverged; give lower learning rates: {trials[0]['error']}", code=DIVERGED
        )
    place = best_of([trial["metrics"] for trial in scored])
    assert place is not None
    return Swept(digest, trials.index(scored[place]), trials, round(time.monotonic() - began, 1))


def _identified(
    catalog: Catalog, request: Request, wanted: Wanted, grid: Mapping[str, Sequence[Any]], method: str
) -> tuple[Request, str]:
    """The request with its data read, for all trials, and the digest of everything that decides what comes out."""
    from ryorin.catalog.tenants import current_prompt, get_tenant
    from ryorin.models.registry import DEFAULT_BASE, get_base

    with catalog.session() as session:
        tenant = get_tenant(session, request.tenant)
        prompt = current_prompt(session, tenant).digest
    data, validation = (
        open_data(catalog, tenant, given, request.reading) if isinstance(given, str) else given
        for given in (request.data, request.validation)
    )
    assert data is not None
    digest = digest_of(
        {
            "trainer": TRAINER_VERSION,
            **texts_spec(wanted.given.get("keep_general") or 0),
            "method": method,
            "tenant": tenant.id,
            "base": get_base(catalog.settings, request.base or DEFAULT_BASE).digest,
            "prompt": prompt,
            "data": dataset_digest(data.rows),
            "validation": None if validation is None else dataset_digest(validation.rows),
            "start": request.start_from,
            "given": {name: _plain(value) for name, value in wanted.given.items()},
            "grid": {name: list(values) for name, values in grid.items()},
        }
    )
    return replace(request, data=data, validation=validation, reading=None, sweep=digest), digest


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _trial(
    catalog: Catalog,
    method: Callable[..., Finished],
    request: Request,
    wanted: Wanted,
    values: dict[str, Any],
    listener: Listener,
) -> dict[str, Any]:
    try:
        finished = method(catalog, request, replace(wanted, given={**wanted.given, **values}), listener)
    except RyorinError as error:
        if error.code != DIVERGED:
            raise
        listener.say(error.message)
        return {"values": values, "error": error.message}
    if not any(name.startswith("held_out_") for name in finished.metrics):
        raise InvalidInput("a sweep goes by the held-out rows, and there are none", param="held_out")
    return {
        "values": values,
        "adapter": finished.adapter,
        "digest": finished.digest,
        "metrics": finished.metrics,
        "best_epoch": finished.manifest.get("best_epoch"),
        "reused": finished.reused,
        "seconds": finished.manifest["train_seconds"],
    }


def _known(catalog: Catalog, path: Path) -> list[dict[str, Any]]:
    """The trials that were done before; when the best one's adapter is gone, that one is to be trained again."""
    trials: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    scored = [trial for trial in trials if "error" not in trial]
    place = best_of([trial["metrics"] for trial in scored])
    if place is not None:
        best = scored[place]
        if not is_whole(catalog.settings.adapters_dir / best["adapter"], best["digest"]):
            trials.remove(best)
    return trials


def _tidy(
    catalog: Catalog, request: Request, digest: str, trials: Sequence[dict[str, Any]], say: Callable[[str], None]
) -> None:
    """Delete the adapters that this sweep made, but for the best one and those that a release uses."""
    from ryorin.catalog.tenants import get_tenant

    scored = [trial for trial in trials if "error" not in trial]
    place = best_of([trial["metrics"] for trial in scored])
    kept = None if place is None else scored[place]["adapter"]
    with catalog.session() as session:
        tenant = get_tenant(session, request.tenant)
        mine = [row.name for row, _ in list_adapters(session, tenant) if row.manifest.get("sweep") == digest]
    for name in mine:
        if name != kept:
            try:
                delete_adapter(catalog, name)
            except Conflict as error:
                say(f"{name} is kept: {error.message}")


@contextmanager
def _state(folder: Path) -> Iterator[Path]:
    """The file of the sweep's trials, for this process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("the same sweep is run by another process; wait for it, or end it and repeat this") from None
        yield folder / TRIALS


def _write(path: Path, trials: Sequence[dict[str, Any]]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(trials, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
