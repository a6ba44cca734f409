"""
`/health` and `/ready`: what those who route requests here ask, without a key.

`/health` tells of the engine, from what its supervisor knows; it costs nothing. `/ready` also asks the catalog, without
which no key can be proved: at most once a second and one at a time, however many ask.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ryorin.catalog import Catalog
from ryorin_serve.engine_handle import EngineHandle, retry_after_s, state_of

LOOK_S = 1.0  # for which an answer of the catalog holds, and after which a missing one is a no
_logger = logging.getLogger("ryorin.serve")


class Readiness:
    """The handlers. elsewhere: there are models elsewhere, so that questions are answered without an engine too."""

    def __init__(self, catalog: Catalog, engines: Sequence[EngineHandle], *, elsewhere: bool) -> None:
        self._elsewhere = elsewhere
        self._catalog = catalog
        self._engines = engines
        self._look: asyncio.Task[bool] | None = None
        self._looked_at = 0.0

    def routes(self) -> list[Route]:
        """What is served to everybody."""
        return [Route("/health", self.health), Route("/ready", self.ready)]

    async def health(self, _request: Request) -> Response:
        """Whether an engine answers: 200, or 503 while all of them start or are away."""
        return self._answer({})

    async def ready(self, _request: Request) -> Response:
        """Whether questions can be answered: 200 when an engine and the catalog answer, or 503."""
        return self._answer({"catalog": "ready" if await self._catalog_answers() else "down"}, self._elsewhere)

    def _answer(self, more: dict[str, str], elsewhere: bool = False) -> Response:
        parts = {"engine": state_of(self._engines), **more}
        needed = more if elsewhere else parts
        if all(state == "ready" for state in needed.values()):
            return JSONResponse({"status": "ok", **parts})
        headers = {"retry-after": str(math.ceil(retry_after_s(self._engines)))}
        return JSONResponse({"status": "unavailable", **parts}, status_code=503, headers=headers)

    async def _catalog_answers(self) -> bool:
        """Those who ask during a look share its answer; one that is not back in time goes on, and is not begun anew."""
        if self._look is None or (self._look.done() and time.monotonic() - self._looked_at >= LOOK_S):
            self._looked_at = time.monotonic()
            self._look = asyncio.create_task(asyncio.to_thread(self._ask))
        done, _ = await asyncio.wait({self._look}, timeout=LOOK_S)
        return bool(done) and self._look.result()

    def _ask(self) -> bool:
        try:
            with self._catalog.session() as session:
                session.execute(text("SELECT version_num FROM alembic_version"))
        except Exception:
            _logger.warning("the catalog does not answer", exc_info=True)
            return False
        return True
