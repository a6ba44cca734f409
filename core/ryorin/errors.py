"""
Every error Ryorin raises on purpose.

    RyorinError
    ├── InvalidInput (ValueError)           400  a value is wrong; names the field
    │   └── RowError                        400  a row of a data file is wrong; names the line
    ├── AuthenticationFailed (PermissionError) 401
    ├── NotAllowed (PermissionError)        403
    ├── NotFound (LookupError)              404
    ├── Conflict (RuntimeError)             409  it exists, or something else holds it
    ├── OverLimit (RuntimeError)            429  too much was used; try again after `retry_after_s`
    ├── Unavailable (ConnectionError)       503  try again after `retry_after_s`
    └── RequirementMissing (RuntimeError)   the machine or the installation lacks something

A message names the value, the limit and the next step. `http_status`, `code` and `param` let the gateway turn any of
them into an OpenAI error object without knowing which one it is.
"""

from __future__ import annotations


class RyorinError(Exception):
    """Base of all errors raised on purpose."""

    http_status = 500
    type = "server_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class InvalidInput(RyorinError, ValueError):
    """A value given by the caller cannot be used; `param` names the field."""

    http_status = 400
    type = "invalid_request_error"


class RowError(InvalidInput):
    """A row of a data file cannot be used."""

    def __init__(self, source: str, line: int, reason: str) -> None:
        super().__init__(f"{source}, line {line}: {reason}", code="invalid_row")
        self.source = source
        self.line = line
        self.reason = reason


class AuthenticationFailed(RyorinError, PermissionError):
    """No key, or one that is unknown, expired or revoked."""

    http_status = 401
    type = "invalid_request_error"


class NotAllowed(RyorinError, PermissionError):
    """The key is right and may not do this."""

    http_status = 403
    type = "permission_error"


class NotFound(RyorinError, LookupError):
    """The named thing does not exist for this tenant."""

    http_status = 404
    type = "invalid_request_error"


class Conflict(RyorinError, RuntimeError):
    """The thing exists already, or another process holds it."""

    http_status = 409
    type = "invalid_request_error"


class OverLimit(RyorinError, RuntimeError):
    """
    More was asked for than may be used.

    what: "requests", "tokens" or, of a month's budget, "insufficient_quota". retry_after_s: when there is more.
    """

    http_status = 429

    def __init__(self, message: str, what: str, *, retry_after_s: float, code: str) -> None:
        super().__init__(message, code=code)
        self.type = what
        self.retry_after_s = retry_after_s


class Unavailable(RyorinError, ConnectionError):
    """A part that is needed does not answer now; it may after `retry_after_s` seconds."""

    http_status = 503
    type = "server_error"

    def __init__(self, message: str, *, retry_after_s: float = 5.0, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class RequirementMissing(RyorinError, RuntimeError):
    """The machine or the installation lacks something; the message says what and how to get it."""
