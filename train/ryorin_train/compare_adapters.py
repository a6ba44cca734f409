"""Two adapters side by side: what they were made from, how well they do, and how far their weights are apart."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ryorin_train.adapters import get_adapter, whole_folder

if TYPE_CHECKING:
    from ryorin.catalog import Catalog

_LAYER = re.compile(r"\.layers\.(\d+)\.")
# Of the manifest: fields that name an adapter and differ always, or say on which machine it was made.
_OWN = frozenset({"name", "digest", "run_digest", "created_at", "train_seconds", "tokens_per_s", "target_modules"})


def compare_adapters(catalog: Catalog, name_a: str, name_b: str) -> dict[str, Any]:
    """
    {"a", "b", "same", "fields": {field: [of A, of B]} where they differ, "weights"}.

    weights: None when they adapt different base models; otherwise `all` and, by name, `layers`, `kinds` (q_proj …) and
    `modules`, each {"norm_a", "norm_b", "distance", "cosine"} as in `updates.Distance`.

    Raises NotFound for an unknown adapter, InvalidInput for one whose files are damaged.
    """
    with catalog.session() as session:
        (row_a, _), (row_b, _) = get_adapter(session, name_a), get_adapter(session, name_b)
    flat_a, flat_b = _flat(row_a.manifest), _flat(row_b.manifest)
    fields = {
        field: [flat_a.get(field), flat_b.get(field)]
        for field in [*flat_a, *(field for field in flat_b if field not in flat_a)]
        if flat_a.get(field) != flat_b.get(field)
    }
    folders = [whole_folder(catalog.settings, row) for row in (row_a, row_b)]
    weights = None
    if row_a.base_digest == row_b.base_digest:
        from ryorin_train.updates import distances, load_updates

        of_a, of_b = (load_updates(folder) for folder in folders)
        modules = sorted({*of_a, *of_b}, key=lambda module: (_layer(module), module))
        groups = {
            "all": {"all": modules},
            "layers": _grouped(modules, lambda module: str(_layer(module))),
            "kinds": _grouped(modules, lambda module: module.rpartition(".")[2]),
            "modules": {module: [module] for module in modules},
        }
        measured = {
            kind: {name: _rounded(asdict(one)) for name, one in distances(of_a, of_b, names).items()}
            for kind, names in groups.items()
        }
        weights = {**measured, "all": measured["all"]["all"]}
    return {
        "a": row_a.name,
        "b": row_b.name,
        "same": row_a.digest == row_b.digest,
        "fields": fields,
        "weights": weights,
    }


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest's fields, those of its objects under `object.field`."""
    flat: dict[str, Any] = {}
    for field, value in manifest.items():
        if field in _OWN:
            continue
        if isinstance(value, dict):
            flat |= {f"{field}.{part}": one for part, one in value.items()}
        elif value is not None:
            flat[field] = value
    return flat


def _layer(module: str) -> int:
    match = _LAYER.search(module)
    return int(match[1]) if match else -1


def _grouped(modules: list[str], key: Any) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(key(module), []).append(module)
    return groups


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 6) for name, value in values.items()}
