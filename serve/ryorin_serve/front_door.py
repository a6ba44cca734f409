"""
What stands before the routes: who asks, the request's id, and errors as OpenAI's clients know them.

Everything but `/health` and `/ready` needs a key, also what does not exist.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ryorin.catalog.audit import acting
from ryorin.digests import new_id
from ryorin.errors import NotFound, RyorinError, Unavailable
from ryorin_serve.auth import Caller
from ryorin_serve.errors import error_object, error_response, internal_error
from ryorin_serve.json_log import log_request

PUBLIC = {"/health", "/ready"}

_logger = logging.getLogger("ryorin.serve")


class FrontDoor:
    """
    Middleware around everything: gives the request its id, identifies the caller, turns what nobody foresaw into a 500.

    Deny by default: a path that is not in `PUBLIC` is not even looked up without a key.
    """

    def __init__(self, app: ASGIApp, identify: Callable[[str | None], Coroutine[Any, Any, Caller]]) -> None:
        self._app = app
        self._identify = identify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, began = new_id("req_"), time.perf_counter()
        started, status = False, 0
        state = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.update(state.get("headers", {}))
            await send(message)

        try:
            if scope["path"] in PUBLIC:
                await self._app(scope, receive, send_with_id)
                return
            caller = state["caller"] = await self._identify(Request(scope).headers.get("authorization"))
            with acting(f"key {caller.key_prefix}", request_id):
                await self._app(scope, receive, send_with_id)
        except RyorinError as error:
            await error_response(error)(scope, receive, send_with_id)
        except asyncio.CancelledError:  # uvicorn does that at the end of the grace, and would answer in plain text
            if started:
                raise
            await error_response(stopping())(scope, receive, send_with_id)
        except Exception:
            _logger.exception("request %s failed", request_id)
            if started:
                raise
            await JSONResponse(internal_error(request_id), status_code=500)(scope, receive, send_with_id)
        finally:
            if scope["path"] not in PUBLIC:
                known: Caller | None = state.get("caller")
                log_request(
                    {
                        "request_id": request_id,
                        "tenant": known and known.tenant_name,
                        "key": known and known.key_prefix,
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "ms": round(1000 * (time.perf_counter() - began), 1),
                    }
                )


def stopping() -> Unavailable:
    """The answer to requests that the end of the server cuts off."""
    return Unavailable("The server is stopping; try again.", code="server_stopping")


async def on_ryorin_error(_request: Request, error: Exception) -> Response:
    """One raised on purpose."""
    assert isinstance(error, RyorinError)
    return error_response(error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.scope['path']}"  # `request.url` trips over a malformed Host
    if error.status_code == 404:
        return error_response(NotFound(f"Unknown request URL: {path}.", code="unknown_url"))
    message = f"Not allowed to {path}." if error.status_code == 405 else str(error.detail)
    body = error_object(message, "invalid_request_error")
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
