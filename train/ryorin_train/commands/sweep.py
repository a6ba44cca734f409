"""`ryorin train sweep`: words in, words out; the work is in sweep.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ryorin.commands.common import opened_catalog, print_json, print_rows, say, stopping_in_order
from ryorin_train.auto import Wanted

if TYPE_CHECKING:
    from ryorin_train.sweep import Swept


def sweep(method: str, request: Any, kind: Any, values: dict[str, Any], as_json: bool) -> None:
    """Run the sweep that the words ask for, and show it. values: of the grid and of every trial."""
    from ryorin_train import job
    from ryorin_train.progress import Listener
    from ryorin_train.sweep import SWEPT, run_sweep

    given = {name: value for name, value in values.items() if value is not None}
    grid = {name: given.pop(name) for name in SWEPT if name in given}
    run = getattr(job, f"run_{method}")
    with stopping_in_order(), opened_catalog() as catalog:
        swept = run_sweep(catalog, run, request, Wanted(kind, given), grid, Listener(say))
    if as_json:
        print_json(swept.as_json())
    else:
        _show(swept)


def _show(swept: Swept) -> None:
    rows = []
    for place, trial in enumerate(swept.trials):
        scores = {name: value for name, value in trial.get("metrics", {}).items() if name.startswith("held_out_")}
        rows.append(
            {
                **trial["values"],
                "best_epoch": trial.get("best_epoch"),
                **{name.removeprefix("held_out_"): value for name, value in scores.items()},
                "seconds": trial.get("seconds"),
                "": "best" if place == swept.best else "diverged" if "error" in trial else "",
            }
        )
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    shown = [{name: _cell(row.get(name)) for name in columns} for row in rows]
    print_rows(shown, columns, as_json=False, empty="")
    result = swept.as_json()
    say(
        f"best by {result['decided_by'].replace('_', ' ')}, and by luck: it was chosen on these rows. 'ryorin train "
        "evaluate' judges it on others"
    )
    click.echo(result["adapter"])


def _cell(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
