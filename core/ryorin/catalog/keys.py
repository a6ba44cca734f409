"""API keys: bearer secrets that speak for a tenant. Only an HMAC of them is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, select
from sqlalchemy.orm import Session

from ryorin.catalog import audit
from ryorin.catalog.tables import ApiKey, Tenant
from ryorin.digests import new_id
from ryorin.errors import AuthenticationFailed, Conflict, NotFound
from ryorin.scopes import DEFAULT_SCOPES, scopes_of
from ryorin.settings import ROTATION_GRACE_S

KEY_PREFIX = "ryo-"
_PREFIX_LENGTH = len(KEY_PREFIX) + 12


def issue_key(
    session: Session,
    tenant: Tenant,
    pepper: bytes,
    label: str = "",
    expires_at: float | None = None,
    scopes: Iterable[str] = DEFAULT_SCOPES,
    *,
    key_id: str | None = None,
) -> tuple[ApiKey, str]:
    """
    A new key and its secret, which is shown this once and kept nowhere; its id is a new one unless given.

    Raises InvalidInput for scopes that cannot be.
    """
    key, secret = _made(tenant.id, pepper, label, expires_at, scopes_of(scopes), key_id)
    session.add(key)
    session.flush()
    audit.note(session, tenant.id, "key.create", key.id, prefix=key.prefix, label=label, scopes=list(scopes))
    return key, secret


def rotate_key(
    session: Session, tenant: Tenant, pepper: bytes, key_id: str, grace_s: float = ROTATION_GRACE_S
) -> tuple[ApiKey, str]:
    """
    A new key that may do what an old one may, and its secret; the old one ends after `grace_s`, or when it would have.

    Raises NotFound, and Conflict when the old one is not valid any longer.
    """
    old = get_key(session, tenant, key_id)
    now = time.time()
    if not is_valid(old, now):
        raise Conflict(f"key {old.id} is not valid any longer; create a new one with 'ryorin key create'", param="key")
    key, secret = _made(tenant.id, pepper, old.label, old.expires_at, scopes_of(old.scopes.split(",")), None)
    key.replaces = old.id
    key.requests_per_minute, key.tokens_per_minute = old.requests_per_minute, old.tokens_per_minute
    key.tokens_per_month = old.tokens_per_month
    session.add(key)
    old.expires_at = min(now + grace_s, old.expires_at or float("inf"))
    session.flush()
    audit.note(session, tenant.id, "key.rotate", old.id, new=key.id, prefix=key.prefix, grace_s=grace_s)
    return key, secret


def authenticate(connection: Connection | Session, pepper: bytes, secret: str) -> RowMapping:
    """
    The key that a bearer secret belongs to, and its tenant, in one statement: their columns as `key_…` and `tenant_…`.

    The row is found by the indexed prefix and proved by HMAC-SHA-256 in constant time (RFC 2104). Raises
    AuthenticationFailed with one message for every cause, so that a caller learns nothing from it.
    """
    refused = AuthenticationFailed("Incorrect API key provided.", code="invalid_api_key")
    if not secret.startswith(KEY_PREFIX) or len(secret) > 256 or "\0" in secret:
        raise refused
    found = connection.execute(_BY_PREFIX, {"prefix": secret[:_PREFIX_LENGTH]}).mappings().one_or_none()
    proof = _hmac(pepper, secret)
    if found is None or not hmac.compare_digest(found["key_hmac"], proof):
        raise refused
    if not _holds(found["key_revoked_at"], found["key_expires_at"], time.time()):
        raise refused
    return found


_BY_PREFIX = (
    select(
        *(column.label(f"key_{column.name}") for column in ApiKey.__table__.columns),
        *(column.label(f"tenant_{column.name}") for column in Tenant.__table__.columns),
    )
    .join(Tenant, ApiKey.tenant_id == Tenant.id)
    .where(ApiKey.prefix == bindparam("prefix"))
)


def is_valid(key: ApiKey, now: float) -> bool:
    """Whether a key is neither revoked nor expired."""
    return _holds(key.revoked_at, key.expires_at, now)


def _holds(revoked_at: float | None, expires_at: float | None, now: float) -> bool:
    return revoked_at is None and (expires_at is None or expires_at > now)


def list_keys(session: Session, tenant: Tenant) -> Sequence[ApiKey]:
    """The tenant's keys, oldest first; their secrets are not known to anyone here."""
    return session.scalars(select(ApiKey).where(ApiKey.tenant_id == tenant.id).order_by(ApiKey.created_at)).all()


def get_key(session: Session, tenant: Tenant, key_id: str) -> ApiKey:
    """A key of the tenant by its id or prefix. Raises NotFound."""
    key = session.scalar(
        select(ApiKey).where(ApiKey.tenant_id == tenant.id, (ApiKey.id == key_id) | (ApiKey.prefix == key_id))
    )
    if key is None:
        raise NotFound(f"tenant {tenant.name!r} has no key {key_id!r}; 'ryorin key list' shows its keys", param="key")
    return key


def revoke_key(session: Session, tenant: Tenant, key_id: str) -> ApiKey:
    """Revoke a key by its id or prefix, from the next request on. Raises NotFound."""
    key = get_key(session, tenant, key_id)
    if key.revoked_at is None:
        key.revoked_at = time.time()
        audit.note(session, tenant.id, "key.revoke", key.id, prefix=key.prefix)
    return key


def key_row(key: ApiKey) -> dict[str, Any]:
    """A key as it is shown; its secret is not known."""
    fields = ("id", "prefix", "label", "created_at", "expires_at", "revoked_at", "replaces")
    limits = ("requests_per_minute", "tokens_per_minute", "tokens_per_month")
    return {name: getattr(key, name) for name in (*fields, *limits)} | {"scopes": key.scopes.split(",")}


def keyed_hash(pepper: bytes, text: str) -> str:
    """A name for `text` that tells nothing of it to who has not the pepper: HMAC-SHA-256, in hex."""
    return _hmac(pepper, text)


def _made(
    tenant_id: str, pepper: bytes, label: str, expires_at: float | None, scopes: tuple[str, ...], key_id: str | None
) -> tuple[ApiKey, str]:
    secret = KEY_PREFIX + secrets.token_hex(6) + secrets.token_urlsafe(32)
    key = ApiKey(
        id=key_id or new_id("key_"),
        tenant_id=tenant_id,
        prefix=secret[:_PREFIX_LENGTH],
        hmac=_hmac(pepper, secret),
        label=label,
        expires_at=expires_at,
        scopes=",".join(scopes),
    )
    return key, secret


def _hmac(pepper: bytes, secret: str) -> str:
    return hmac.new(pepper, secret.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()
