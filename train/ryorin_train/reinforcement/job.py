"""`ryorin train rl` as a job: what job.py does, with a grader beside tenant and data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryorin.adapter_files import REWARD
from ryorin.errors import InvalidInput, NotFound
from ryorin.graders import Grader, RewardModel, ScoreModel, read_grader
from ryorin_train.adapters import get_adapter, whole_folder
from ryorin_train.auto import Wanted
from ryorin_train.data import Task, for_each_row
from ryorin_train.datasets.formats import Reading, only_tasks
from ryorin_train.graders.asking_model import asker
from ryorin_train.graders.grading import Grading, check_item
from ryorin_train.job import Finished, Request, Run
from ryorin_train.processes import processes
from ryorin_train.progress import Listener
from ryorin_train.recipe import Recipe, ReinforcementRecipe
from ryorin_train.render import Renderer, TokenTask

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import Adapter
    from ryorin_train.graders.grading import Score

READING = Reading(format="openai-reinforcement")


def read_grader_file(path: Path) -> dict[str, Any]:
    """A grader's JSON from a file. Raises NotFound, or InvalidInput when it is no object in JSON."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"no file {path}; --grader takes a file with a grader in JSON", param="grader") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}", param="grader") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{path} is no object in JSON", param="grader")
    return value


def run_rl(
    catalog: Catalog,
    request: Request,
    recipe: Recipe | Wanted,
    listener: Listener,
    *,
    grader: dict[str, Any],
    job_id: str | None = None,
) -> Finished:
    """
    Train an adapter by the grades of its answers; else as `ryorin_train.job.run_sft`.

    grader: its JSON (`ryorin.graders`). Raises what that raises; InvalidInput for a grader that cannot be, a model it
    may not ask or a reward model of another tenant or base; RowError for rows that lack a field it asks for.
    """
    if isinstance(request.data, str) and (request.reading is None or request.reading.format is None):
        request = replace(request, reading=replace(request.reading or READING, format=READING.format))
    run = _GradedRun(catalog, request, recipe, listener, job_id, grader)
    return run.finished(run.tasks, run.rows)


class _GradedRun(Run):
    def __init__(
        self,
        catalog: Catalog,
        request: Request,
        recipe: Recipe | Wanted,
        listener: Listener,
        job_id: str | None,
        grader: dict[str, Any],
    ) -> None:
        super().__init__(catalog, "rl", request, recipe, listener, job_id)
        if processes() > 1:
            raise InvalidInput(
                f"{processes()} processes were started; reinforcement learning runs in one", param="method"
            )
        self._spec = grader
        self._grader: Grader = read_grader(grader)
        for leaf in self._grader.leaves():
            if isinstance(leaf, RewardModel):
                self._reward_row(leaf.model)
            if isinstance(leaf, ScoreModel):
                asker(leaf)

    def more(self) -> dict[str, Any]:
        return {"grader": self._spec}

    def grading(self) -> Grading:
        return Grading(self._grader, self._reward_model)

    def tasks(self, name: str, rows: Sequence[Any]) -> list[Task]:
        """The rows, if the grader can grade answers to them."""
        tasks = only_tasks(name, rows)
        for_each_row(name, tasks, lambda task: task.line, lambda task: check_item(self._grader, task.content))
        return tasks

    def rows(self, renderer: Renderer, name: str, tasks: Sequence[Task]) -> list[TokenTask]:
        assert isinstance(self.recipe, ReinforcementRecipe)
        return renderer.tasks(name, tasks, self.recipe.max_answer_tokens)

    def _reward_row(self, name: str) -> Adapter:
        with self.catalog.session() as session:
            row, _ = get_adapter(session, name)
        if row.tenant_id != self.tenant.id:  # in the words of one that does not exist
            raise NotFound(f"no adapter {name!r}; 'ryorin adapter list' shows all", param="adapter")
        if row.manifest.get("kind") != REWARD:
            raise InvalidInput(
                f"{name} answers, and is no reward model; 'ryorin train reward' makes one", param="grader.model"
            )
        if row.base_digest != self.base.digest:
            raise InvalidInput(f"{name} scores what another base model says", param="grader.model")
        return row

    def _reward_model(self, name: str) -> Score:
        from ryorin_train.reward import RewardModel as Scorer

        return Scorer(self.base.path, whole_folder(self.settings, self._reward_row(name)))
