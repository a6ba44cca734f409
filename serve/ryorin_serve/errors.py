"""Errors as OpenAI's clients know them: `{"error": {message, type, param, code}}`, the status and the headers."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

from ryorin.errors import AuthenticationFailed, Conflict, OverLimit, RyorinError, Unavailable

INSUFFICIENT_QUOTA = "insufficient_quota"


def error_object(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: RyorinError) -> JSONResponse:
    """The response to an error raised on purpose."""
    headers: dict[str, str] = {}
    if isinstance(error, Unavailable | OverLimit):
        # Clients retry by themselves: the openai package twice, after what these say when that is at most a minute.
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    if error.code == INSUFFICIENT_QUOTA or isinstance(error, Conflict):
        # A month is not waited for; what is in the way of a 409 stays, unlike OpenAI's.
        headers["x-should-retry"] = "false"
    if isinstance(error, AuthenticationFailed):
        headers["www-authenticate"] = "Bearer"
    body = error_object(error.message, error.type, param=error.param, code=error.code)
    return JSONResponse(body, status_code=error.http_status, headers=headers)


def internal_error(request_id: str) -> dict[str, Any]:
    """The body for what nobody foresaw: no detail leaves the server, the log has it under the request's id."""
    return error_object(f"The server had an error; the log has more under {request_id}.", "server_error")
