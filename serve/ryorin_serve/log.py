"""
The log of answered requests, written by a thread of its own: a request never waits for it.

A row is in the catalog within about `GATHER_S`; a server that is killed loses those that were not. Rows queue up to
`CAPACITY`; beyond that they are dropped and counted, as the alternative is to stop answering.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Any

from sqlalchemy.exc import InterfaceError, OperationalError

from ryorin.catalog import Catalog
from ryorin.catalog.database import insert_into
from ryorin.catalog.tables import RequestLog

CAPACITY = 10_000
BATCH = 100
GATHER_S = 0.05  # rows that come so close after another are written with it: a transaction costs more than a row
ATTEMPTS = 5

_logger = logging.getLogger("ryorin.serve")


class LogWriter:
    """Appends rows to the catalog's request log. `close` writes what is queued and ends the thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # A retry after an unclear commit writes nothing twice.
        self._insert = insert_into(catalog.engine, RequestLog).on_conflict_do_nothing(index_elements=["id"])
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(CAPACITY)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request log", daemon=True)
        self._thread.start()
        self.dropped = 0

    def write(self, **columns: Any) -> None:
        """Queue one row; returns at once."""
        try:
            self._queue.put_nowait(columns)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1 or self.dropped % 1000 == 0:
                _logger.error("the request log cannot keep up: %d rows dropped so far", self.dropped)

    def close(self) -> None:
        """Write what is queued, then end."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ending = False
        while not ending:
            rows = [self._queue.get()]
            self._closing.wait(GATHER_S)
            while len(rows) < BATCH and not self._queue.empty():
                rows.append(self._queue.get_nowait())
            ending = None in rows
            if whole := [row for row in rows if row is not None]:
                self._store(whole)

    def _store(self, rows: list[dict[str, Any]]) -> None:
        """Write rows together; one that the database does not take (PostgreSQL: a NUL) does not cost the others."""
        for attempt in range(ATTEMPTS):
            try:
                with self._catalog.engine.begin() as connection:
                    connection.execute(self._insert, rows)
                return
            except (InterfaceError, OperationalError) as error:  # the database is away or busy
                _logger.warning("writing the request log failed (%d of %d): %s", attempt + 1, ATTEMPTS, error)
                time.sleep(0.2 * 2**attempt)
            except Exception as error:
                if len(rows) > 1:
                    for row in rows:
                        self._store([row])
                    return
                _logger.error("row %s of the request log cannot be written: %s", rows[0]["id"], error)
                break
        self.dropped += len(rows)
        _logger.error("%d rows of the request log are lost", len(rows))
