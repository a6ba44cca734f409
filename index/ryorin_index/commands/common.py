"""What the commands of `ryorin index` share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ryorin.catalog.tenants import get_tenant
from ryorin.commands.common import opened_catalog
from ryorin_index.store import get_store

if TYPE_CHECKING:
    from ryorin.catalog import Catalog
    from ryorin.catalog.tables import VectorStore


@contextmanager
def opened_store(store: str, tenant_name: str) -> Iterator[tuple[Catalog, VectorStore]]:
    """The catalog, closed at the end, and the tenant's store of that name. Raises NotFound."""
    with opened_catalog() as catalog:
        with catalog.session() as session:
            chosen = get_store(session, get_tenant(session, tenant_name), store)
        yield catalog, chosen
