"""
One adapter out of several of the same base model: the weighted sum of what they change.

The sum of low-rank updates has at most the sum of their ranks. Where a rank that vLLM serves is large enough the result
is exact (PEFT's 'cat'); otherwise it is the nearest of the largest rank, and the share that was lost is told (PEFT's
'svd', without building a full weight). The base model's weights are not read.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ryorin.adapter_files import CONFIG_FILE, WEIGHTS_FILE, adapter_digest, adapter_name, check_answers
from ryorin.digests import SHORT
from ryorin.errors import Conflict, InvalidInput
from ryorin_train import servable
from ryorin_train.adapters import get_adapter, publish, whole_folder
from ryorin_train.base_shapes import base_linears
from ryorin_train.import_adapter import described
from ryorin_train.work import job_folder

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import Adapter

MAX_WEIGHT = 100.0


@dataclass(frozen=True)
class Merged:
    """What a merge gave. lost: the share of the sum's norm that the rank has no room for, 0 to 1."""

    adapter: str
    digest: str
    rank: int
    lost: float
    prompt_digest: str | None
    present: bool


def merge_adapters(
    catalog: Catalog,
    names: Sequence[str],
    weights: Sequence[float],
    *,
    tenant_name: str | None = None,
    rank: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Merged:
    """
    Merge adapters into a new one of a tenant (the first one's unless named).

    rank: of the result; otherwise the smallest that holds the sum exactly, or the largest there is.
    Bound to the parents' prompt when they share one, otherwise to none.

    Raises NotFound for an unknown adapter or tenant; InvalidInput for weights, a rank or parents that cannot be used;
    Conflict for parents of different base models.
    """
    from ryorin.catalog.tenants import get_tenant
    from ryorin.models.registry import base_by_digest

    _check_numbers(names, weights, rank)
    with catalog.session() as session:
        found = [get_adapter(session, name) for name in names]
    for row, _ in found:
        check_answers(row.name, row.manifest)
        parents = [row for row, _ in found]
        tenant = get_tenant(session, tenant_name or found[0][1])
    first = parents[0]
    for other in parents[1:]:
        if other.base_digest != first.base_digest:
            raise Conflict(
                f"{first.name} adapts base model {first.base_digest[:SHORT]}, {other.name} "
                f"{other.base_digest[:SHORT]}; only adapters of one base model can be merged"
            )
    folders = [whole_folder(catalog.settings, parent) for parent in parents]
    base = base_by_digest(catalog.settings, first.base_digest)
    linears = base_linears(base.path)
    configs = [servable.read_config(folder / CONFIG_FILE) for folder in folders]
    prompts = {parent.prompt_digest for parent in parents}
    prompt_digest = prompts.pop() if len(prompts) == 1 else ""
    total = sum(parent.rank for parent in parents)
    chosen = rank or next((one for one in servable.RANKS if one >= total), servable.RANKS[-1])
    config = _config(configs, chosen, str(base.path))

    from safetensors.torch import save_file

    from ryorin_train.updates import inner, load_updates, nothing, padded, reduced, summed

    params = {"parents": [parent.name for parent in parents], "weights": list(weights), "rank": chosen}
    with job_folder(catalog, tenant.id, "merge", params) as (job_id, folder):
        build = folder / "adapter"
        build.mkdir()
        sums = summed([(weight, load_updates(one)) for weight, one in zip(weights, folders, strict=True)])
        whole = math.fsum(inner(update, update) for update in sums.values())
        lost = 0.0
        tensors: dict[str, Any] = {}
        for module, (rows, columns) in servable.adapted_modules(config, linears).items():
            update = sums.get(module)
            if update is None:  # another layer's module is adapted, this one is not: it changes nothing
                update = nothing(rows, columns)
            if update.a.shape[0] > chosen:
                update, missing = reduced(update, chosen)
                lost += missing
            update = padded(update, chosen)
            for side, tensor in (("A", update.a), ("B", update.b)):
                tensors[f"{servable.PREFIX}{module}.lora_{side}.weight"] = tensor.float().contiguous()
        save_file(tensors, build / WEIGHTS_FILE, metadata={"format": "pt"})
        (build / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        servable.check_folder(build, linears)
        share = round(min(1.0, math.sqrt(lost / whole)), 6) if whole > 0 else 0.0
        digest = adapter_digest(build)
        name = adapter_name(tenant.name, digest)
        now = round(time.time(), 3)
        manifest = {
            **described(name, digest, tenant.name, "merge", base, prompt_digest, config, now),
            "parents": [_parent(row, weight) for row, weight in zip(parents, weights, strict=True)],
            "metrics": {"lost": share},
        }
        published = publish(catalog, build, manifest, tenant.id, job_id)
    if share:
        say(f"rank {chosen} has no room for the sum of ranks {total}: {share:.1%} of its norm is lost")
    if not prompt_digest:
        say("the parents were not made for one known prompt: a release needs --allow-prompt-mismatch")
    return Merged(name, digest, chosen, share, published.prompt_digest or None, published.job_id != job_id)


def _check_numbers(names: Sequence[str], weights: Sequence[float], rank: int | None) -> None:
    if len(names) < 2:
        raise InvalidInput(f"{len(names)} adapter is named; a merge needs two or more", param="adapters")
    if len(set(names)) != len(names):
        raise InvalidInput("an adapter is named twice; give it the sum of the weights once", param="adapters")
    if len(weights) != len(names):
        raise InvalidInput(f"{len(names)} adapters and {len(weights)} weights; give one for each", param="weights")
    for weight in weights:
        if not math.isfinite(weight) or not 0 < abs(weight) <= MAX_WEIGHT:
            raise InvalidInput(
                f"a weight is {weight}; it must be between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}, and not 0",
                param="weights",
            )
    if rank is not None and rank not in servable.RANKS:
        raise InvalidInput(f"rank is {rank}; vLLM takes {', '.join(map(str, servable.RANKS))}", param="rank")


def _config(configs: Sequence[dict[str, Any]], rank: int, base_path: str) -> dict[str, Any]:
    """The first one's configuration for the sum: alpha equal to the rank, so the weights count as they are."""
    layers = [servable.layers_of(config) for config in configs]
    every = None if any(one is None for one in layers) else sorted({layer for one in layers for layer in one or ()})
    return {
        **configs[0],
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "target_modules": sorted({target for config in configs for target in config["target_modules"]}),
        "layers_to_transform": every,
        "layers_pattern": None,
        "base_model_name_or_path": base_path,
    }


def _parent(row: Adapter, weight: float) -> dict[str, Any]:
    return {"name": row.name, "digest": row.digest, "weight": weight}
