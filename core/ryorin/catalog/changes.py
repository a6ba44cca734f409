"""
Whether anything in the catalog changed, at the price of a look instead of a statement.

SQLite counts, for each connection, the commits of all others, in this process and in every other one
(https://www.sqlite.org/pragma.html#pragma_data_version). What was read after a look is as good as new for as long as
the next look gives the same number. PostgreSQL has no such count.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from sqlalchemy import Engine

BUSY_S = 0.05  # a look that would wait longer is no look


class Changes:
    """Looks at the catalog that `engine` connects to. For one thread."""

    def __init__(self, engine: Engine) -> None:
        self._connection: sqlite3.Connection | None = None
        if engine.dialect.name == "sqlite":
            address = Path(str(engine.url.database)).absolute().as_uri() + "?mode=ro"
            with contextlib.suppress(sqlite3.Error):
                self._connection = sqlite3.connect(address, uri=True, timeout=BUSY_S, check_same_thread=False)

    def look(self) -> int | None:
        """A number that is another one whenever something was committed since the last look; None if nobody knows."""
        if self._connection is None:
            return None
        try:
            number: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:
            return None
        return number

    def close(self) -> None:
        """Look no more."""
        if self._connection is not None:
            self._connection.close()
