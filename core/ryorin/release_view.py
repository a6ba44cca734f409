"""Releases as they are shown: names instead of ids, what differs between two, how the traffic is parted."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ryorin.catalog.tables import Adapter, Prompt, Release, Tenant, VectorStore
from ryorin.release import Retrieval, get_release
from ryorin.traffic import CANARY, LIVE, SHADOW


def release_rows(session: Session, tenant: Tenant, releases: Sequence[Release]) -> list[dict[str, Any]]:
    """
    Releases with names instead of ids.

    `traffic`: live, canary or shadow, with `share` of the latter two; None is asked by its version alone. A release
    that is both canary and shadow is called the canary.
    """
    adapters = {row.id: row.name for row in session.scalars(select(Adapter).where(Adapter.tenant_id == tenant.id))}
    prompts = {row.id: row.digest for row in session.scalars(select(Prompt).where(Prompt.tenant_id == tenant.id))}
    stores = {
        row.id: row.name for row in session.scalars(select(VectorStore).where(VectorStore.tenant_id == tenant.id))
    }
    parts = {
        tenant.shadow_release_id: (SHADOW, tenant.shadow_share),
        tenant.canary_release_id: (CANARY, tenant.canary_share),
        tenant.live_release_id: (LIVE, None),
    }
    return [
        {
            "version": release.version,
            "live": release.id == tenant.live_release_id,
            "traffic": parts.get(release.id, (None, None))[0],
            "share": parts.get(release.id, (None, None))[1],
            "adapter": adapters[release.adapter_id] if release.adapter_id else None,
            "stores": [stores.get(store_id, store_id) for store_id in release.store_ids],
            "retrieval": asdict(Retrieval.stored(release.retrieval)),
            "base": release.base_digest,
            "prompt": prompts[release.prompt_id],
            "digest": release.digest,
            "evidence": release.evidence,
            "note": release.note,
            "created_at": release.created_at,
            "id": release.id,
        }
        for release in releases
    ]


def documents_of(row: dict[str, Any]) -> str:
    """What a release's row says of its documents, in words."""
    if not row["stores"] or not row["retrieval"]["top_k"]:
        return "no documents"
    return f"{row['retrieval']['top_k']} passages of {', '.join(row['stores'])}"


def release_diff(session: Session, tenant: Tenant, first: int, second: int) -> dict[str, Any]:
    """
    What differs between two releases of the tenant.

    `parts`: [{part, first, second}] of base, adapter, stores and the fields of retrieval, those that differ alone.
    `prompt`: a unified diff of the two prompts' texts, empty when they are the same. `figures`: [{name, first, second}]
    of the evaluations that either keeps as evidence, None where it has none. Raises NotFound.
    """
    releases = [get_release(session, tenant, version) for version in (first, second)]
    one, other = release_rows(session, tenant, releases)
    retrievals = [asdict(Retrieval.stored(release.retrieval)) for release in releases]
    pairs = [(part, one[part], other[part]) for part in ("base", "adapter", "stores")]
    pairs += [(f"retrieval.{name}", value, retrievals[1][name]) for name, value in retrievals[0].items()]
    before, after = [prompt_text(session.get_one(Prompt, release.prompt_id).spec) for release in releases]
    return {
        "first": first,
        "second": second,
        "same": one["digest"] == other["digest"],
        "parts": [{"part": part, "first": a, "second": b} for part, a, b in pairs if a != b],
        "prompt": text_diff(before, after, f"release {first}", f"release {second}"),
        "figures": _figures(one["evidence"], other["evidence"]),
    }


def prompt_text(spec: dict[str, Any]) -> str:
    """A prompt as text: the system text, then the schema of answers if there is one."""
    schema = spec.get("answer_schema")
    shown = "" if schema is None else f"\n\nanswer_schema:\n{json.dumps(schema, ensure_ascii=False, indent=2)}"
    return f"{spec['system']}{shown}"


def text_diff(first: str, second: str, first_name: str, second_name: str) -> str:
    """A unified diff, empty when the texts are the same."""
    lines = difflib.unified_diff(first.splitlines(), second.splitlines(), first_name, second_name, lineterm="")
    return "\n".join(lines)


def _figures(first: dict[str, Any] | None, second: dict[str, Any] | None) -> list[dict[str, Any]]:
    known = [(evidence or {}).get("figures") or {} for evidence in (first, second)]
    names = list(dict.fromkeys([*known[0], *known[1]]))
    return [{"name": name, "first": known[0].get(name), "second": known[1].get(name)} for name in names]
