"""
One training run as a job: from a tenant and a file to an adapter in the catalog.

Everything is built in `<home>/jobs/<job id>/` and renamed into `<home>/adapters/` at the end, so an interrupted run
leaves no adapter; what it leaves are checkpoints, which the same run continues from. The same run again (tenant, base
model, prompt, data, recipe, trainer version) is not trained again.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ryorin.adapter_files import CONFIG_FILE, REWARD, adapter_digest, adapter_name, check_answers
from ryorin.digests import SHORT, digest_of
from ryorin.errors import InvalidInput
from ryorin_train import TRAINER_VERSION
from ryorin_train.adapters import find_run, get_adapter, publish, whole_folder
from ryorin_train.auto import Choice, Facts, Wanted, decide, facts_of, kept, said
from ryorin_train.checkpoints import checkpoint_folder, checkpoints_of
from ryorin_train.data import Example, Preference, Rating, Row, Task, dataset_digest
from ryorin_train.datasets.formats import only_examples, only_preferences, only_ratings
from ryorin_train.datasets.groups import split_rows
from ryorin_train.datasets.store import add_dataset, open_data, purpose_of
from ryorin_train.general_texts import kept_rows, texts_spec
from ryorin_train.processes import FollowedCheckpoints, follows
from ryorin_train.progress import Listener
from ryorin_train.recipe import Recipe
from ryorin_train.render import Branched, Renderer, TokenRow, context_window, load_tokenizer
from ryorin_train.servable import read_config
from ryorin_train.trackers import Tracking, check_trackers
from ryorin_train.training import check_recipe, check_start, shape_of, train
from ryorin_train.work import job_folder

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import Adapter
    from ryorin.models.registry import BaseModel
    from ryorin.purpose import Purpose
    from ryorin_train.checkpoints import Checkpoints
    from ryorin_train.datasets.formats import Reading
    from ryorin_train.datasets.store import Given
    from ryorin_train.graders.grading import Grading

Kind = TypeVar("Kind", Example, Preference, Rating, Task)
PACKAGES = ("torch", "transformers", "trl", "peft", "safetensors")


@dataclass(frozen=True)
class Finished:
    """What a run gave. reused: nothing was trained, an identical run had been. seconds: of this call."""

    adapter: str
    digest: str
    manifest: dict[str, Any]
    reused: bool
    seconds: float
    job: str | None

    @property
    def metrics(self) -> dict[str, float]:
        """The last losses and held-out scores."""
        metrics: dict[str, float] = self.manifest["metrics"]
        return metrics

    def as_json(self) -> dict[str, Any]:
        """The result of `ryorin train sft --json`."""
        return {
            "adapter": self.adapter,
            "digest": self.digest,
            "metrics": self.metrics,
            "reused": self.reused,
            "seconds": self.seconds,
            "job": self.job,
        }


@dataclass(frozen=True)
class Request:
    """
    What is to be trained.

    tenant: its name. prompt_digest: of the tenant's prompt that is trained for; the current one when None.
    data: rows to learn from, as a file, a directory, the id or digest of a dataset of the tenant, or read already.
    validation: rows to judge by instead of a share of `data`. reading: how files are read.
    purpose: written beside the dataset, as `ryorin data purpose` does; what stands there goes into the manifest.
    base: a base model's name; the bundled one unless named.
    start_from: the name of an adapter, of any tenant, whose weights are the first ones; its data shaped them.
    again: train even if an identical run was trained, or interrupted, before. report_to: trackers that hear of the run
    (trackers.py). sweep: the digest of the sweep that this is a trial of (sweep.py).
    """

    tenant: str
    data: str | Given
    validation: str | Given | None = None
    reading: Reading | None = None
    purpose: Purpose | None = None
    base: str | None = None
    start_from: str | None = None
    again: bool = False
    report_to: tuple[str, ...] = ()
    sweep: str | None = None
    prompt_digest: str | None = None


def run_sft(
    catalog: Catalog, request: Request, recipe: Recipe | Wanted, listener: Listener, *, job_id: str | None = None
) -> Finished:
    """
    Train an adapter on examples, or return the one that an identical run gave (unless `request.again`).

    recipe: whole, or what is wanted of one; the rest is then chosen from the data (auto.py).
    job_id: of a job that the caller holds and will finish; without it the run has a job of its own.
    Raises NotFound for an unknown tenant, prompt, base model, adapter, file or dataset; RowError for lines that cannot
    be used; InvalidInput for a recipe that cannot be trained or served. All before anything is written or trained.
    While another process trains the same run it waits, and takes what that one made.
    """
    return Run(catalog, "sft", request, recipe, listener, job_id).finished(only_examples, Renderer.rows)


def run_dpo(
    catalog: Catalog, request: Request, recipe: Recipe | Wanted, listener: Listener, *, job_id: str | None = None
) -> Finished:
    """Train an adapter on preference pairs; else as `run_sft`. What it starts from is the reference."""
    return Run(catalog, "dpo", request, recipe, listener, job_id).finished(only_preferences, Renderer.pairs)


def run_reward(
    catalog: Catalog, request: Request, recipe: Recipe | Wanted, listener: Listener, *, job_id: str | None = None
) -> Finished:
    """Train a reward model on preference pairs; else as `run_sft`. No release takes it: it is for `ryorin train rl`."""
    return Run(catalog, REWARD, request, recipe, listener, job_id).finished(only_preferences, Renderer.pairs)


def run_kto(
    catalog: Catalog, request: Request, recipe: Recipe | Wanted, listener: Listener, *, job_id: str | None = None
) -> Finished:
    """
    Train an adapter on ratings; else as `run_sft`. What it starts from is the reference.

    Raises InvalidInput too when all thumbs are up, or all down.
    """

    def both_thumbs(name: str, rows: Sequence[Row]) -> list[Rating]:
        ratings = only_ratings(name, rows)
        up = sum(rating.good for rating in ratings)
        if up in (0, len(ratings)):
            raise InvalidInput(
                f"all {len(ratings)} ratings of {name} are thumbs {'up' if up else 'down'}, and KTO learns from the "
                "difference; give it both, or learn good answers as examples with 'ryorin train sft'",
                param="data",
            )
        return ratings

    return Run(catalog, "kto", request, recipe, listener, job_id).finished(both_thumbs, Renderer.ratings)


class Run:
    """What the methods have in common."""

    def __init__(
        self,
        catalog: Catalog,
        kind: str,
        request: Request,
        recipe: Recipe | Wanted,
        listener: Listener,
        job_id: str | None,
    ) -> None:
        from ryorin.catalog.tenants import current_prompt, get_prompt, get_tenant
        from ryorin.models.registry import DEFAULT_BASE, get_base
        from ryorin.prompt import Prompt

        self.began = time.monotonic()
        self.catalog, self.settings, self.kind, self.job_id = catalog, catalog.settings, kind, job_id
        self.request, self.listener = request, listener
        with catalog.session() as session:
            self.tenant = get_tenant(session, request.tenant)
            digest = request.prompt_digest
            row = get_prompt(session, self.tenant, digest) if digest else current_prompt(session, self.tenant)
            self.prompt, self.prompt_digest = Prompt.from_spec(row.spec), row.digest
        check_trackers(request.report_to)
        self.base = get_base(self.settings, request.base or DEFAULT_BASE)
        self.start = None if request.start_from is None else _start(catalog, request.start_from, self.base)
        self.wanted = recipe

    def more(self) -> dict[str, Any]:
        """What else decides which adapter comes out; in its manifest and its digest."""
        return {}

    def grading(self) -> Grading | None:
        """What grades answers, where the method takes them."""
        return None

    def finished(
        self,
        only: Callable[[str, Sequence[Row]], list[Kind]],
        rows_of: Callable[[Renderer, str, Sequence[Kind]], Sequence[TokenRow] | Sequence[Branched]],
    ) -> Finished:
        """The adapter of the request's data: an identical run's, or a new one."""
        request, say = self.request, self.listener.say
        given = self._given(request.data)
        examples = only(given.name, given.rows)
        judged = None if request.validation is None else self._given(request.validation)
        validation = None if judged is None else only(judged.name, judged.rows)
        self.recipe, self.choices = self._decided(examples)
        digest = self._digest(examples, validation)
        if (known := self._known(digest, given, examples)) is not None:
            return known
        renderer = Renderer(load_tokenizer(self.base.path), self.prompt, self.recipe.max_row_tokens)
        rows = rows_of(renderer, given.name, examples)
        if judged is None or validation is None:
            parted = split_rows(examples, self.recipe.held_out, self.recipe.seed)
            training, held_out = ([rows[number] for number in side] for side in (parted.training, parted.held_out))
            if self.recipe.held_out and not held_out:
                say("no row is held out: all are of one group (near-duplicates, one passage or one source) or too few")
        else:
            training, held_out = list(rows), list(rows_of(renderer, judged.name, validation))
        if self.recipe.patience is not None and not held_out:
            raise InvalidInput(
                "patience goes by the held-out rows, and there are none; give more rows, a larger --held-out, or rows "
                "of their own with --validation",
                param="patience",
            )
        if count := self.recipe.keep_general:
            training += kept_rows(renderer.tokenizer, count, self.recipe.seed, self.recipe.max_row_tokens)
        for line in said(self.choices):
            say(line)
        if follows():
            self._follow(training, held_out, digest)
        with checkpoints_of(self.settings, digest, say) as checkpoints:
            if (known := self._known(digest, given, examples)) is not None:  # by another process, meanwhile
                return known
            if request.again:
                checkpoints.forget()
            return self._trained(given, examples, training, held_out, digest, checkpoints)

    def _follow(
        self, training: Sequence[TokenRow | Branched], held_out: Sequence[TokenRow | Branched], run_digest: str
    ) -> NoReturn:
        """Compute this process's part of every step; the first process keeps what comes out."""
        folder = checkpoint_folder(self.settings, run_digest)
        begin_with = self.settings.adapters_dir / self.start.name if self.start else None
        quiet = Listener(lambda line: None)
        checkpoints = FollowedCheckpoints(folder)
        train(
            self.base.path,
            training,
            held_out,
            self.recipe,
            folder,
            quiet,
            checkpoints,
            begin_with,
            self.grading(),
            None,
        )
        raise SystemExit(0)

    def _decided(self, rows: Sequence[Row]) -> tuple[Recipe, tuple[Choice, ...]]:
        """The whole recipe, and what of it was chosen here. Raises InvalidInput when it cannot be trained."""
        wanted, base, start = self.wanted, self.base.path, self.start
        shape = None if start is None else read_config(self.settings.adapters_dir / start.name / CONFIG_FILE)
        recipe, choices = (wanted, ()) if isinstance(wanted, Recipe) else decide(wanted, self._facts(rows, shape))
        check_recipe(recipe, base)
        if shape is not None:
            check_start(recipe, base, shape)
        return recipe, choices

    def _facts(self, rows: Sequence[Row], shape: dict[str, Any] | None) -> Facts:
        return facts_of(rows, context_window(self.base.path), None if shape is None else shape_of(shape))

    def _known(self, digest: str, given: Given, examples: Sequence[Row]) -> Finished | None:
        """What an identical run gave, unless it is to be trained again."""
        if self.request.again:
            return None
        with self.catalog.session() as session:
            known = find_run(session, self.settings, self.tenant, digest, self.base.digest)
        if known is None:
            return None
        if self.request.purpose is not None:
            add_dataset(self.catalog, self.tenant, given.name, examples, given.lineage, self.request.purpose)
        self.listener.say(f"{known.name} was trained with the same data and recipe; --again trains it anew")
        return Finished(known.name, known.digest, known.manifest, True, self._seconds, known.job_id)

    def _given(self, data: str | Given) -> Given:
        return open_data(self.catalog, self.tenant, data, self.request.reading) if isinstance(data, str) else data

    def _digest(
        self,
        examples: Sequence[Row],
        validation: Sequence[Row] | None,
    ) -> str:
        """Of everything that decides which adapter comes out."""
        return digest_of(
            {
                "trainer": TRAINER_VERSION,
                "kind": self.kind,
                "tenant": self.tenant.id,
                "base": self.base.digest,
                "prompt": self.prompt_digest,
                "data": dataset_digest(examples),
                "validation": None if validation is None else dataset_digest(validation),
                "recipe": self.recipe.spec(),
                "start": self.start.digest if self.start else None,
                **texts_spec(self.recipe.keep_general),
                **self.more(),
            }
        )

    def _trained(
        self,
        given: Given,
        examples: Sequence[Row],
        training: Sequence[TokenRow | Branched],
        held_out: Sequence[TokenRow | Branched],
        run_digest: str,
        checkpoints: Checkpoints,
    ) -> Finished:
        base, recipe, start, tenant, settings = self.base, self.recipe, self.start, self.tenant, self.settings
        dataset, _ = add_dataset(self.catalog, tenant, given.name, examples, given.lineage, self.request.purpose)
        with self.catalog.session() as session:
            stated = purpose_of(session, dataset)
        params = {"base": base.name, "dataset": dataset.id, "recipe": recipe.spec(), "run_digest": run_digest}
        with job_folder(self.catalog, tenant.id, self.kind, params, self.job_id) as (job_id, folder):
            build = folder / "adapter"
            build.mkdir()
            begin_with = settings.adapters_dir / start.name if start else None
            tracking = Tracking(
                self.request.report_to, settings.home, f"{tenant.name}-{self.kind}-{run_digest[:SHORT]}"
            )
            self.listener.computing(True)
            trained = train(
                base.path,
                training,
                held_out,
                recipe,
                build,
                self.listener,
                checkpoints,
                begin_with,
                self.grading(),
                tracking,
            )
            self.listener.computing(False)
            digest = adapter_digest(build)
            name = adapter_name(tenant.name, digest)
            manifest = {
                "name": name,
                "digest": digest,
                "tenant": tenant.name,
                "kind": self.kind,
                "base": {"name": base.name, "digest": base.digest},
                "start_from": {"name": start.name, "digest": start.digest} if start else None,
                "prompt_digest": self.prompt_digest,
                "data": {
                    "digest": dataset.digest,
                    "filename": given.name,
                    "rows": len(examples),
                    "trained": sum(not row.kept for row in training),
                    "held_out": len(held_out),
                },
                **texts_spec(self.recipe.keep_general),
                "purpose": stated.spec() if stated else None,
                "rank": recipe.rank,
                "alpha": recipe.alpha,
                "target_modules": sorted(recipe.targets),
                "recipe": recipe.spec(),
                "auto": kept(self.choices),
                "run_digest": run_digest,
                **self.more(),
                "metrics": trained.metrics,
                **({} if trained.best_epoch is None else {"best_epoch": trained.best_epoch}),
                **({} if self.request.sweep is None else {"sweep": self.request.sweep}),
                "trained_tokens": trained.tokens,
                "tokens_per_s": trained.tokens_per_s,
                "precision": trained.precision,
                "train_seconds": trained.seconds,
                "versions": versions(),
                "created_at": round(time.time(), 3),
            }
            mine = self.job_id is None
            publish(self.catalog, build, manifest, tenant.id, job_id, dataset_id=dataset.id, ends_job=mine)
        return Finished(name, digest, manifest, False, self._seconds, job_id)

    @property
    def _seconds(self) -> float:
        return round(time.monotonic() - self.began, 1)


def _start(catalog: Catalog, name: str, base: BaseModel) -> Adapter:
    """The adapter to start from. Raises NotFound, or InvalidInput when its base or files are not right."""
    with catalog.session() as session:
        row, _ = get_adapter(session, name)
    check_answers(row.name, row.manifest)
    if row.base_digest != base.digest:
        raise InvalidInput(
            f"{name} adapts base model {row.manifest['base']['name']} ({row.base_digest[:12]}), "
            f"this run {base.name} ({base.digest[:12]}); name its base with --base",
            param="start_from",
        )
    whole_folder(catalog.settings, row)
    return row


def versions() -> dict[str, str]:
    """The versions that made an adapter."""
    return {
        "ryorin_train": str(TRAINER_VERSION),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
