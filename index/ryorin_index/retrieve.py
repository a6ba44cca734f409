"""What a conversation is given from the stores: gateway and training rows ask here, so that both get the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ryorin.catalog import Catalog
from ryorin.prompt import Message, asked
from ryorin.release import Retrieval
from ryorin_index.search import MAX_QUERY_CHARACTERS, Hit, Searcher
from ryorin_index.store import live_stores


def query_of(conversation: Sequence[Message]) -> str:
    """What is searched for: the last thing the user said, as much of it as a search takes; '' for nothing."""
    query = asked(conversation)[:MAX_QUERY_CHARACTERS]
    return query if query.strip() else ""


def retrieve(
    catalog: Catalog,
    searcher: Searcher,
    tenant_id: str,
    store_ids: Sequence[str],
    conversation: Sequence[Message],
    retrieval: Retrieval,
    *,
    without: Collection[int] = (),
) -> list[Hit] | None:
    """
    The passages for the last thing the user said, best first; None when retrieval is off.

    Stores that have expired are left out, and passages of `without` as if no store held them. Raises as
    `Searcher.search`.
    """
    if not retrieval.enabled:
        return None
    query = query_of(conversation)
    if not query:
        return []
    live = live_stores(catalog, tenant_id, store_ids)
    return searcher.search(tenant_id, live, query, retrieval=retrieval, without=without)
