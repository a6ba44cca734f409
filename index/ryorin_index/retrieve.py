"""What a conversation is given from the stores: gateway and training rows ask here, so that both get the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ryorin.catalog import Catalog
from ryorin.prompt import Message, asked
from ryorin.release import Retrieval
from ryorin_index.search import MAX_QUERY_CHARACTERS, Hit, Searcher
from ryorin_index.store import live_stores


def query_of(conversation: Sequence[Message], rewritten: str | None = None) -> str:
    """
    What is searched for, as much of it as a search takes; '' for nothing.

    It is the last thing the user said, or how that was rewritten.
    """
    query = (rewritten or asked(conversation))[:MAX_QUERY_CHARACTERS]
    return query if query.strip() else ""


def retrieve(
    catalog: Catalog,
    searcher: Searcher,
    tenant_id: str,
    store_ids: Sequence[str],
    query: str,
    retrieval: Retrieval,
    *,
    without: Collection[int] = (),
) -> list[Hit] | None:
    """
    The passages for a query, best first; None when retrieval is off.

    query: as of `query_of`. Stores that have expired are left out, and passages of `without` as if no store held them.
    Raises as `Searcher.search`.
    """
    if not retrieval.enabled:
        return None
    if not query:
        return []
    live = live_stores(catalog, tenant_id, store_ids)
    return searcher.search(tenant_id, live, query, retrieval=retrieval, without=without)
