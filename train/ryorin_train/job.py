"""
One run of supervised fine-tuning as a job: from a tenant and a file to an adapter in the catalog.

Everything is built in `<home>/jobs/<job id>/` and renamed into `<home>/adapters/` at the end, so an interrupted run
leaves no adapter. The same run again (tenant, base model, prompt, data, recipe, trainer version) is not trained again.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryorin.adapter_files import CONFIG_FILE, adapter_digest, adapter_name
from ryorin.blobs import keeping
from ryorin.digests import digest_of, new_id
from ryorin.errors import InvalidInput, RowError
from ryorin_train import TRAINER_VERSION
from ryorin_train.adapters import find_run, get_adapter, keep_dataset, publish, whole_folder, write_manifest
from ryorin_train.data import dataset_bytes, dataset_digest, read_examples, split
from ryorin_train.recipe import Recipe
from ryorin_train.render import Renderer, load_tokenizer
from ryorin_train.servable import read_config
from ryorin_train.sft import check_recipe, check_start, train
from ryorin_train.work import job_folder

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import Adapter
    from ryorin.models.registry import BaseModel

PACKAGES = ("torch", "transformers", "trl", "peft", "safetensors")


@dataclass(frozen=True)
class Finished:
    """What a run gave. reused: nothing was trained, an identical run had been. seconds: of this call."""

    adapter: str
    digest: str
    metrics: dict[str, float]
    reused: bool
    seconds: float
    job: str | None

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


def run_sft(
    catalog: Catalog,
    tenant_name: str,
    data: Path,
    base_name: str | None,
    recipe: Recipe,
    say: Callable[[str], None],
    *,
    start_from: str | None = None,
    again: bool = False,
) -> Finished:
    """
    Train an adapter for the tenant's current prompt, or return the one that an identical run gave (unless `again`).

    start_from: the name of an adapter, of any tenant, whose weights are the first ones; its data shaped them.
    Raises NotFound for an unknown tenant, prompt, base model, adapter or file; RowError for lines that cannot be used;
    InvalidInput for a recipe that cannot be trained or served. All of them before anything is written or trained.
    """
    from ryorin.catalog.tables import Adapter
    from ryorin.catalog.tenants import current_prompt, get_tenant
    from ryorin.models.registry import DEFAULT_BASE, get_base
    from ryorin.prompt import Prompt

    began = time.monotonic()
    settings = catalog.settings
    with catalog.session() as session:
        tenant = get_tenant(session, tenant_name)
        prompt_row = current_prompt(session, tenant)
        prompt = Prompt.from_spec(prompt_row.spec)
    base = get_base(settings, base_name or DEFAULT_BASE)
    check_recipe(recipe, base.path)
    start = None if start_from is None else _start(catalog, start_from, base, recipe)
    examples = read_examples(data)
    run_digest = digest_of(
        {
            "trainer": TRAINER_VERSION,
            "kind": "sft",
            "tenant": tenant.id,
            "base": base.digest,
            "prompt": prompt_row.digest,
            "data": dataset_digest(examples),
            "recipe": recipe.spec(),
            "start": start.digest if start else None,
        }
    )
    if not again:
        with catalog.session() as session:
            known = find_run(session, settings, tenant, run_digest, base.digest)
        if known is not None:
            say(f"{known.name} was trained with the same data and recipe; --again trains it anew")
            seconds = round(time.monotonic() - began, 1)
            return Finished(known.name, known.digest, known.manifest["metrics"], True, seconds, known.job_id)

    renderer = Renderer(load_tokenizer(base.path), prompt, recipe.max_row_tokens)
    renderer.rows(data.name, examples)  # every bad line is named, of both sides of the split
    for_training, for_judging = split(examples, recipe.held_out, recipe.seed)
    training, held_out = (renderer.rows(data.name, side) for side in (for_training, for_judging))
    if not training:
        raise RowError(data.name, 1, "no row is left for training")

    with keeping(settings.blobs_dir), catalog.session() as session:
        dataset = keep_dataset(session, settings, tenant, data.name, dataset_bytes(examples))
    params = {"base": base.name, "dataset": dataset.id, "recipe": recipe.spec(), "run_digest": run_digest}
    with job_folder(catalog, tenant.id, "sft", params) as (job_id, folder):
        build = folder / "adapter"
        build.mkdir()
        trained = train(
            base.path, training, held_out, recipe, build, say, settings.adapters_dir / start.name if start else None
        )
        digest = adapter_digest(build)
        name = adapter_name(tenant.name, digest)
        manifest = {
            "name": name,
            "digest": digest,
            "tenant": tenant.name,
            "kind": "sft",
            "base": {"name": base.name, "digest": base.digest},
            "start_from": {"name": start.name, "digest": start.digest} if start else None,
            "prompt_digest": prompt_row.digest,
            "data": {
                "digest": dataset.digest,
                "filename": data.name,
                "rows": len(examples),
                "trained": len(training),
                "held_out": len(held_out),
            },
            "rank": recipe.rank,
            "alpha": recipe.alpha,
            "target_modules": sorted(recipe.targets),
            "recipe": recipe.spec(),
            "run_digest": run_digest,
            "metrics": trained.metrics,
            "tokens_per_s": trained.tokens_per_s,
            "train_seconds": trained.seconds,
            "versions": versions(),
            "created_at": round(time.time(), 3),
        }
        write_manifest(build, manifest)
        row = Adapter(
            id=new_id("ad_"),
            tenant_id=tenant.id,
            name=name,
            digest=digest,
            base_digest=base.digest,
            prompt_digest=prompt_row.digest,
            dataset_id=dataset.id,
            job_id=job_id,
            rank=recipe.rank,
            manifest=manifest,
        )
        publish(catalog, build, row, job_id)
    seconds = round(time.monotonic() - began, 1)
    return Finished(name, digest, trained.metrics, False, seconds, job_id)


def _start(catalog: Catalog, name: str, base: BaseModel, recipe: Recipe) -> Adapter:
    """The adapter to start from. Raises NotFound, or InvalidInput when its base, shape or files are not right."""
    with catalog.session() as session:
        row, _ = get_adapter(session, name)
    if row.base_digest != base.digest:
        raise InvalidInput(
            f"{name} adapts base model {row.manifest['base']['name']} ({row.base_digest[:12]}), "
            f"this run {base.name} ({base.digest[:12]}); name its base with --base",
            param="start_from",
        )
    folder = whole_folder(catalog.settings, row)
    check_start(recipe, base.path, read_config(folder / CONFIG_FILE))
    return row


def versions() -> dict[str, str]:
    """The versions that made an adapter."""
    return {
        "ryorin_train": str(TRAINER_VERSION),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
