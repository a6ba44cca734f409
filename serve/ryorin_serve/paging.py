"""Lists as OpenAI's clients page through them: by `limit`, `order`, `after` and `before`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, or_
from sqlalchemy.orm import InstrumentedAttribute, Session
from starlette.requests import Request

from ryorin.errors import InvalidInput
from ryorin_serve.requests import choice, integer, query_of

PAGING = ("limit", "order", "after", "before")
Find = Callable[[str], tuple[float, str] | None]


@dataclass(frozen=True)
class Page:
    """Which part of a list. after, before: ids of the objects it lies between."""

    limit: int
    order: str
    after: str | None
    before: str | None


def read_page(request: Request, others: Collection[str] = (), *, default: int = 20, most: int = 100) -> Page:
    """The page that the query asks for. Raises InvalidInput for what is not among the list's parameters."""
    query = query_of(request, (*PAGING, *others))
    given = query.get("limit", str(default))
    limit = integer(int(given) if given.isascii() and given.isdigit() and len(given) < 10 else given, "limit", 1, most)
    order = choice(query.get("order", "desc"), "order", ("asc", "desc"))
    return Page(limit, order, query.get("after"), query.get("before"))


def rows_of(
    session: Session,
    statement: Select[Any],
    created_at: InstrumentedAttribute[float],
    key: InstrumentedAttribute[str],
    page: Page,
    find: Find,
) -> tuple[Sequence[Any], bool]:
    """
    The page's rows in its order, and whether there are more beyond it.

    find: the place (created at, key) of the object with an id, or None when there is none.
    """
    descending = page.order == "desc"
    backwards = page.before is not None and page.after is None
    for name, cursor, later in (("after", page.after, not descending), ("before", page.before, descending)):
        if cursor is None:
            continue
        place = find(cursor)
        if place is None:
            raise InvalidInput(f"{name} is {cursor[:64]!r}, which is not in this list.", param=name)
        statement = statement.where(_beyond(created_at, key, place, later))
    columns = (created_at, key) if descending == backwards else (created_at.desc(), key.desc())
    rows = session.scalars(statement.order_by(*columns).limit(page.limit + 1)).all()
    more = len(rows) > page.limit
    rows = rows[: page.limit]
    return (rows[::-1] if backwards else rows), more


def list_object(data: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A list as the API answers it."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def _beyond(
    created_at: InstrumentedAttribute[float], key: InstrumentedAttribute[str], place: tuple[float, str], later: bool
) -> ColumnElement[bool]:
    at, name = place
    if later:
        return or_(created_at > at, and_(created_at == at, key > name))
    return or_(created_at < at, and_(created_at == at, key < name))
