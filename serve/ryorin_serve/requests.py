"""What a request says: its body, its fields, its query, its idempotency key. What is unknown is refused by name."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request

from ryorin.digests import digest_of, new_id, sha256_bytes
from ryorin.errors import InvalidInput
from ryorin_serve.auth import Caller

MAX_PAIRS, MAX_KEY_CHARACTERS, MAX_VALUE_CHARACTERS = 16, 64, 512  # of OpenAI's metadata and attributes
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255
BODY_S = 60.0  # that a body of JSON may take to come
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class BodyTooLarge(InvalidInput):
    """The request's body is over the limit."""

    http_status = 413


class BodyTooSlow(InvalidInput):
    """The request's body did not come in time."""

    http_status = 408


async def read_json(request: Request, limit: int) -> Any:
    """
    The body as JSON. Raises BodyTooLarge over `limit` bytes, BodyTooSlow when it does not come within `BODY_S`,
    InvalidInput when it is not JSON.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise BodyTooLarge(
                        f"The request's body is over the limit of {limit} bytes.", code="request_too_large"
                    )
    except TimeoutError:
        raise BodyTooSlow(f"The request's body did not come within {BODY_S:g} s.", code="request_timeout") from None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"The request's body is not JSON: {error}.", code="invalid_json") from None


async def optional_fields(request: Request, limit: int, allowed: Collection[str]) -> dict[str, Any]:
    """The fields of a body that may be left out, and of a request without a query. Raises InvalidInput."""
    query_of(request, ())
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return {}
    return fields_of(await read_json(request, limit), allowed)


def base_url(request: Request) -> str:
    """Where the client reaches this server."""
    return str(request.base_url).rstrip("/")


def caller_of(request: Request) -> Caller:
    """Who asks; the front door has found out."""
    caller: Caller = request.state.caller
    return caller


def path_id(request: Request, name: str) -> str:
    """An id of the path; one that no object can have becomes one that no object has."""
    given: str = request.path_params[name]
    return given if _ID.fullmatch(given) else "?"


def shown_id(request: Request, name: str) -> str:
    """An id of the path as an error repeats it."""
    return repr(str(request.path_params[name])[:64])[1:-1]


def idempotent_id(request: Request, prefix: str) -> tuple[str, bool]:
    """The id for what is created, and whether it follows from an `Idempotency-Key`: then it is the same each time."""
    words = _key_words(request)
    return (new_id(prefix), False) if words is None else (prefix + sha256_bytes(words.encode())[:24], True)


def idempotency_key(request: Request, prefix: str, body: object) -> IdempotencyKey | None:
    """The request's `Idempotency-Key` together with what it asks for, JSON that was checked; None when it has none."""
    words = _key_words(request)
    return None if words is None else IdempotencyKey(prefix, words, digest_of(body))


def _key_words(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if not key:
        return None
    if len(key) > MAX_IDEMPOTENCY_KEY_CHARACTERS:
        raise InvalidInput(
            f"The Idempotency-Key has {len(key)} characters, the limit is {MAX_IDEMPOTENCY_KEY_CHARACTERS}.",
            param="Idempotency-Key",
        )
    return "\0".join((caller_of(request).tenant_id, request.scope["path"], key))


@dataclass(frozen=True)
class IdempotencyKey:
    """
    What a request with an `Idempotency-Key` makes has an id whose beginning follows from the key and its end from what
    was asked for. turn: a key is free again after a time, and what it makes then has another beginning.
    """

    prefix: str
    words: str
    asked: str

    def stem(self, turn: int) -> str:
        """The beginning of the ids."""
        words = f"{self.words}\0{turn}" if turn else self.words
        return self.prefix + sha256_bytes(words.encode())[:16]

    def made_id(self, turn: int) -> str:
        """The id."""
        return self.stem(turn) + self.asked[:8]


def key_reused(what: str) -> InvalidInput:
    """The error for an `Idempotency-Key` that made something else before."""
    return InvalidInput(
        f"This Idempotency-Key was used for another {what}; use a new key for a new {what}.",
        code="idempotency_key_reused",
        param="Idempotency-Key",
    )


def query_of(request: Request, allowed: Collection[str]) -> dict[str, str]:
    """The query's parameters. Raises InvalidInput for one that is not in `allowed`."""
    query = dict(request.query_params)
    for name in query:
        if name not in allowed:
            raise unknown(name, allowed)
    return query


def fields_of(value: Any, allowed: Collection[str], where: str = "") -> dict[str, Any]:
    """A JSON object with these fields at most. where: the field it is the value of, with a dot."""
    if not isinstance(value, dict):
        name = where.rstrip(".") or "The request's body"
        raise InvalidInput(f"{name} must be a JSON object.", param=where.rstrip(".") or None)
    for name in value:
        if name not in allowed:
            raise unknown(where + name[:64], [where + each for each in allowed])
    return value


def unknown(name: str, allowed: Collection[str]) -> InvalidInput:
    """The refusal of a field or parameter that this server does not know."""
    known = f"known here: {', '.join(allowed)}" if allowed else "none is known here"
    return InvalidInput(f"Unknown parameter: {name!r}; {known}.", code="unknown_parameter", param=name)


def text(body: Mapping[str, Any], name: str, limit: int) -> str | None:
    """A text that the catalog can hold; None when it is not given."""
    value = body.get(name)
    if value is None:
        return None
    return checked_text(value, name, limit)


def checked_text(value: Any, param: str, limit: int) -> str:
    """The value, a text of `limit` characters at most."""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidInput(f"{param} must be a string without NUL.", param=param)
    if len(value) > limit:
        raise InvalidInput(f"{param} has {len(value)} characters, the limit is {limit}.", param=param)
    return value


def integer(value: Any, param: str, low: int, high: int) -> int:
    """The value, a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInput(f"{param} is {value!r}; use an integer from {low} to {high}.", param=param)
    return value


def choice(value: Any, param: str, allowed: Collection[str]) -> str:
    """The value, one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidInput(f"{param} is {value!r}; use one of: {', '.join(allowed)}.", param=param)
    return value


def pairs(body: Mapping[str, Any], name: str, *, strings_only: bool, where: str = "") -> dict[str, Any] | None:
    """Metadata or attributes: 16 keys at most, short; None when they are not given."""
    value, param = body.get(name), where + name
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InvalidInput(f"{param} must be an object.", param=param)
    if len(value) > MAX_PAIRS:
        raise InvalidInput(f"{param} has {len(value)} keys, the limit is {MAX_PAIRS}.", param=param)
    for key, each in value.items():
        checked_text(key, param, MAX_KEY_CHARACTERS)
        if isinstance(each, str):
            checked_text(each, f"{param}.{key}", MAX_VALUE_CHARACTERS)
        elif strings_only or not isinstance(each, bool | int | float):
            kinds = "a string" if strings_only else "a string, a number or a boolean"
            raise InvalidInput(f"{param}.{key} must be {kinds}.", param=f"{param}.{key}")
    return value


def ids(value: Any, param: str, low: int, high: int) -> list[str]:
    """A list of ids, each once."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidInput(f"{param} must be a list of ids.", param=param)
    if not low <= len(value) <= high:
        raise InvalidInput(f"{param} has {len(value)} ids; give {low} to {high}.", param=param)
    return list(dict.fromkeys(each if _ID.fullmatch(each) else "?" for each in value))
