"""
A foreign LoRA adapter made one of a tenant's own.

Its two files are copied (foreign_files.py), the copies checked against the base model (servable.py), the configuration
written anew without what names other machines or code, and the folder published as a trained one is. Nothing that an
adapter says of itself is believed but its numbers: what it was trained on, how well it does, which prompt it knows.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ryorin.adapter_files import CONFIG_FILE, WEIGHTS_FILE, adapter_digest, adapter_name
from ryorin.digests import SHORT, digest_of, sha256_file
from ryorin.errors import Conflict, NotFound
from ryorin_train import servable
from ryorin_train.adapters import publish
from ryorin_train.base_shapes import base_linears
from ryorin_train.foreign_files import opened_source, plain
from ryorin_train.tensor_file import MAX_HEADER_BYTES
from ryorin_train.work import job_folder

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin.models.registry import BaseModel
    from ryorin.settings import Settings


@dataclass(frozen=True)
class Imported:
    """What an import gave. present: the very same adapter was there already. ignored: files that were not taken."""

    adapter: str
    digest: str
    base: str
    rank: int
    prompt_digest: str | None
    present: bool
    ignored: list[str]


def import_adapter(
    catalog: Catalog,
    tenant_name: str,
    source: Path,
    *,
    base_name: str | None = None,
    for_current_prompt: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Imported:
    """
    Import the adapter in a folder or a ZIP file for a tenant.

    base_name: the base model it adapts; otherwise the one on this machine that its configuration names.
    for_current_prompt: the operator says that it was made for the tenant's present prompt. Otherwise that is not known,
    and a release takes it only with --allow-prompt-mismatch.

    Raises NotFound for an unknown tenant, prompt, source or base model; InvalidInput for what vLLM cannot serve or what
    is not safe to take, naming the file, field or tensor; Conflict when it is here already, bound to another prompt.
    """
    from ryorin.catalog.tenants import current_prompt, get_tenant

    source = Path(os.path.abspath(source))  # '.' has no name
    with catalog.session() as session:
        tenant = get_tenant(session, tenant_name)
        prompt_digest = current_prompt(session, tenant).digest if for_current_prompt else ""
    with job_folder(catalog, tenant.id, "import", {"source": plain(source.name), "base": base_name}) as (
        job_id,
        folder,
    ):
        build = folder / "adapter"
        build.mkdir()
        with opened_source(source, folder) as opened:
            opened.copy(CONFIG_FILE, build / CONFIG_FILE, servable.MAX_CONFIG_BYTES)
            config = servable.read_config(build / CONFIG_FILE)
            servable.check_config(config)
            base = find_base(catalog.settings, config.get("base_model_name_or_path"), base_name)
            linears = base_linears(base.path)
            limit = 8 + MAX_HEADER_BYTES + servable.weights_limit(config, linears)
            opened.copy(WEIGHTS_FILE, build / WEIGHTS_FILE, limit)
            ignored = opened.ignored
        files = {name: sha256_file(build / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
        config = own_config(config, base.path)
        (build / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        servable.check_folder(build, linears)
        digest = adapter_digest(build)
        name = adapter_name(tenant.name, digest)
        now = round(time.time(), 3)
        manifest = {
            **described(name, digest, tenant.name, "import", base, prompt_digest, config, now),
            "imported": {"source": plain(source.name), "digest": digest_of(files), "files": files, "ignored": ignored},
        }
        published = publish(catalog, build, manifest, tenant.id, job_id)
        present = published.job_id != job_id
        if present and prompt_digest not in ("", published.prompt_digest):
            raise Conflict(
                f"{name} is here already, bound to {_prompt(published.prompt_digest)}; to bind it to the present one "
                f"delete it first (ryorin adapter delete {name}), or create the release with --allow-prompt-mismatch"
            )
    if ignored:
        say(f"not taken: {', '.join(ignored[:5])}{'…' if len(ignored) > 5 else ''}")
    return Imported(name, digest, base.name, config["r"], published.prompt_digest or None, present, ignored)


def described(
    name: str,
    digest: str,
    tenant: str,
    kind: str,
    base: BaseModel,
    prompt_digest: str,
    config: dict[str, Any],
    created_at: float,
) -> dict[str, Any]:
    """The manifest's fields of an adapter that was not trained here: the same as a trained one's, where they apply."""
    return {
        "name": name,
        "digest": digest,
        "tenant": tenant,
        "kind": kind,
        "base": {"name": base.name, "digest": base.digest},
        "prompt_digest": prompt_digest or None,
        "data": None,
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "target_modules": config["target_modules"],
        "recipe": None,
        "metrics": {},
        "created_at": created_at,
    }


def own_config(config: dict[str, Any], base_path: Path) -> dict[str, Any]:
    """A checked configuration as training writes it: for this machine's base model, without names of Python modules."""
    return {
        **config,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
        "revision": None,
        "base_model_name_or_path": str(base_path),
        "inference_mode": True,
        "target_modules": sorted(config["target_modules"]),
    }


def find_base(settings: Settings, named: str | None, base_name: str | None) -> BaseModel:
    """
    The base model of an adapter whose configuration says `named`; base_name: what the operator says.

    Raises NotFound when neither names one on this machine, Conflict when both do and they differ.
    """
    from ryorin.models.registry import get_base, list_models

    present = [model for model in list_models(settings) if model.role == "base" and model.state == "present"]
    matching = [
        model.name
        for model in present
        if named and (named in (model.name, model.path) or model.source.partition("@")[0] == f"hf:{named}")
    ]
    if base_name is not None:
        base = get_base(settings, base_name)
        if matching and base.name not in matching:
            raise Conflict(
                f"the adapter's configuration names the base model {matching[0]}, not {base_name}; leave --base away, "
                "or correct base_model_name_or_path in it",
                param="base",
            )
        return base
    if matching:
        return get_base(settings, matching[0])
    known = ", ".join(model.name for model in present) or "none"
    said = f"names the base model {named[:120]!r}, which is not on this machine" if named else "names no base model"
    raise NotFound(f"the adapter's configuration {said}; say which it is with --base (present: {known})", param="base")


def _prompt(digest: str) -> str:
    return f"prompt {digest[:SHORT]}" if digest else "no prompt"
