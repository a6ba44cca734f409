"""Tenants, their limits and their current prompt."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ryorin.catalog import audit
from ryorin.catalog.tables import Prompt, Tenant
from ryorin.digests import SHORT, is_name, new_id
from ryorin.errors import Conflict, InvalidInput, NotFound
from ryorin.prompt import Prompt as PromptValue

MAX_FALLBACK_NAME = 128


def create_tenant(session: Session, name: str, description: str = "") -> Tenant:
    """A new tenant. Raises InvalidInput for a bad name, Conflict for a taken one."""
    if not is_name(name):
        raise InvalidInput(
            f"tenant name {name!r}: use lower-case letters, digits and inner hyphens, 48 at most", param="tenant"
        )
    taken = Conflict(f"tenant {name!r} exists already; 'ryorin tenant list' shows all", param="tenant")
    if session.scalar(select(Tenant).where(Tenant.name == name)) is not None:
        raise taken
    tenant = Tenant(id=new_id("ten_"), name=name, description=description)
    session.add(tenant)
    try:
        session.flush()
    except IntegrityError as error:  # another process was faster
        raise taken from error
    audit.note(session, tenant.id, "tenant.create", name)
    return tenant


def get_tenant(session: Session, name: str) -> Tenant:
    """The tenant of that name. Raises NotFound, naming those that exist."""
    tenant = session.scalar(select(Tenant).where(Tenant.name == name))
    if tenant is None:
        known = ", ".join(session.scalars(select(Tenant.name).order_by(Tenant.name))) or "none yet"
        raise NotFound(
            f"no tenant {name!r} (known: {known}); create it with 'ryorin tenant create {name}'", param="tenant"
        )
    return tenant


def lock_tenant(session: Session, tenant: Tenant) -> None:
    """
    Hold the tenant's row until the transaction ends, and read it anew.

    What depends on what is there already (the next version, what was live before) is read after this, so that two
    processes do it one after the other. An UPDATE, because SQLite knows no FOR UPDATE: it takes the writer's turn there
    and the row's lock on PostgreSQL.
    """
    session.execute(update(Tenant).where(Tenant.id == tenant.id).values(name=Tenant.name), {})
    session.refresh(tenant)


def list_tenants(session: Session) -> Sequence[Tenant]:
    """All tenants by name."""
    return session.scalars(select(Tenant).order_by(Tenant.name)).all()


def set_prompt(session: Session, tenant: Tenant, prompt: PromptValue) -> Prompt:
    """Make `prompt` the one that the tenant's next training and next release use; setting the same again is free."""
    row = keep_prompt(session, tenant, prompt)
    if tenant.prompt_id != row.id:
        audit.note(session, tenant.id, "prompt.set", row.digest[:SHORT])
    tenant.prompt_id = row.id
    session.flush()
    return row


def keep_prompt(session: Session, tenant: Tenant, prompt: PromptValue) -> Prompt:
    """The tenant's row of this prompt, made when it is new; what training and releases use stays as it is."""
    lock_tenant(session, tenant)
    row = session.scalar(select(Prompt).where(Prompt.tenant_id == tenant.id, Prompt.digest == prompt.digest))
    if row is None:
        row = Prompt(id=new_id("prompt_"), tenant_id=tenant.id, digest=prompt.digest, spec=prompt.spec())
        session.add(row)
        session.flush()
    return row


def current_prompt(session: Session, tenant: Tenant) -> Prompt:
    """The tenant's prompt row. Raises NotFound when none was set."""
    row = session.get(Prompt, tenant.prompt_id) if tenant.prompt_id else None
    if row is None:
        raise NotFound(
            f"tenant {tenant.name!r} has no prompt yet; set one with 'ryorin prompt set FILE --tenant {tenant.name}'",
            param="prompt",
        )
    return row


def get_prompt(session: Session, tenant: Tenant, digest: str) -> Prompt:
    """The tenant's prompt row of this digest, current or not. Raises NotFound."""
    row = session.scalar(select(Prompt).where(Prompt.tenant_id == tenant.id, Prompt.digest == digest))
    if row is None:
        raise NotFound(f"tenant {tenant.name!r} has no prompt with digest {digest[:12]}", param="prompt")
    return row


def set_fallbacks(session: Session, tenant: Tenant, names: Sequence[str]) -> list[str]:
    """
    Say which models elsewhere may be asked for the tenant when no engine answers, in their order; none for none.

    Its questions and passages are sent to them. Raises InvalidInput for a name that cannot be.
    """
    for name in names:
        if not name.strip() or len(name) > MAX_FALLBACK_NAME:
            raise InvalidInput(
                f"fallback is {name[:80]!r}; it must have 1 to {MAX_FALLBACK_NAME} characters", param="fallbacks"
            )
    allowed = list(dict.fromkeys(names))
    if allowed != (tenant.fallbacks or []):
        tenant.fallbacks = allowed or None
        audit.note(session, tenant.id, "fallbacks.set", tenant.name, fallbacks=allowed)
        session.flush()
    return allowed
