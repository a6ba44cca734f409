"""Writing the log of requests, on both databases."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event, select

from ryorin.catalog import Catalog
from ryorin.catalog.tables import RequestLog
from ryorin.catalog.tenants import create_tenant, set_prompt
from ryorin.prompt import Prompt
from ryorin.release import create_release
from ryorin_serve.log import LogWriter


def test_rows_are_written_together_and_once_and_a_bad_one_does_not_cost_the_others(catalog: Catalog) -> None:
    with catalog.session() as session:
        tenant = create_tenant(session, "support")
        prompt = set_prompt(session, tenant, Prompt("Answer."))
        release = create_release(session, tenant, base_digest="b" * 64, prompt=prompt)

    def row(name: str, **more: Any) -> dict[str, Any]:
        common = {"tenant_id": tenant.id, "release_id": release.id, "created_at": 5.0, "passages": [], "status": "ok"}
        return {"id": name, "messages": [{"role": "user", "content": "返品は?"}], "answer": "30日", **common, **more}

    writer = LogWriter(catalog)
    together: list[bool] = []
    event.listen(catalog.engine, "before_cursor_execute", lambda *given: together.append(given[-1]))
    writer._store([row("d"), row("e")])
    assert together == [True], "one call, whatever the number of rows"
    for each in (row("a"), row("b", answer="NUL \0"), row("c"), row("a", answer="another")):
        writer.write(**each)
    writer.close()
    with catalog.session() as session:
        rows = {each.id: each for each in session.scalars(select(RequestLog))}
    takes_nul = catalog.engine.dialect.name == "sqlite"
    assert set(rows) == {"a", "c", "d", "e", *(["b"] if takes_nul else [])}
    assert writer.dropped == (0 if takes_nul else 1)
    first = rows["a"]
    assert (first.answer, first.messages[0]["content"], first.created_at) == ("30日", "返品は?", 5.0)
    assert (first.prompt_tokens, first.retrieval_ms, first.part) == (0, 0.0, None)
