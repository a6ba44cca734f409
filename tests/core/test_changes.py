"""Looking whether anything in the catalog changed."""

from __future__ import annotations

import subprocess
import sys

from sqlalchemy import text

from ryorin.catalog import Catalog
from ryorin.catalog.changes import Changes
from ryorin.catalog.tenants import create_tenant


def test_every_commit_is_seen_and_nothing_else(catalog: Catalog) -> None:
    changes = Changes(catalog.engine)
    if catalog.engine.dialect.name == "postgresql":
        assert changes.look() is None
        changes.close()
        return
    seen = [changes.look()]
    assert seen[0] is not None

    def is_seen() -> bool:
        seen.append(changes.look())
        return seen[-1] not in seen[:-1]

    assert not is_seen()
    with catalog.session() as session:
        create_tenant(session, "support")
        assert not is_seen(), "it is not committed"
    assert is_seen()
    assert not is_seen()
    with catalog.session() as session:
        create_tenant(session, "people")
        session.rollback()
    assert not is_seen()
    with catalog.reading() as session:
        session.execute(text("SELECT * FROM tenants")).all()
    assert not is_seen()
    other = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('DELETE FROM tenants'); c.commit()"
    subprocess.run([sys.executable, "-c", other, str(catalog.engine.url.database)], check=True)
    assert is_seen(), "of another process"
    changes.close()
    assert changes.look() is None
