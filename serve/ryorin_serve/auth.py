"""Who asks: a bearer key, proved against the catalog on every request, so that revoking one works from the next on."""

from __future__ import annotations

from dataclasses import dataclass

from ryorin.catalog import Catalog
from ryorin.catalog.tenants import authenticate
from ryorin.errors import AuthenticationFailed


@dataclass(frozen=True)
class Caller:
    """The tenant a request belongs to, and the key that proved it."""

    tenant_id: str
    tenant_name: str
    key_id: str


def identify(catalog: Catalog, pepper: bytes, authorization: str | None) -> Caller:
    """The caller by the `Authorization` header. Blocking. Raises AuthenticationFailed."""
    scheme, _, secret = (authorization or "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise AuthenticationFailed(
            "You didn't provide an API key. Send it as 'Authorization: Bearer KEY'; 'ryorin key create' makes one."
        )
    with catalog.session() as session:
        tenant, key = authenticate(session, pepper, secret)
        return Caller(tenant_id=tenant.id, tenant_name=tenant.name, key_id=key.id)
