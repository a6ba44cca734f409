"""
A middleware inside vLLM: nothing of it but `/health` without the gateway's key.

vLLM's own check covers the paths below /v1, /v2, /inference and /cohere alone
(`vllm/entrypoints/serve/middleware/authenticate.py`). `/invocations` answers chat requests for any adapter, so that
every process on the machine could ask as any tenant; `/tokenize` and `/metrics` stand open too. `vllm_command` names
this class with `--middleware`; it runs in vLLM's process and imports nothing of the gateway's.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class EngineDoor:
    """Lets in who carries the key of the environment's VLLM_API_KEY; raises KeyError when there is none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._proof = b"Bearer " + os.environ["VLLM_API_KEY"].encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan" or scope["path"] == "/health" or self._proven(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: a 403
        else:
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

    def _proven(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._proof)
