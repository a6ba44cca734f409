"""
The catalog's tables: the truth of everything but blobs. One class a table, nothing else.

Times are Unix seconds (float). Every row of tenant data carries its tenant, and every query filters by it.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BigId = BigInteger().with_variant(Integer(), "sqlite")  # SQLite autoincrements INTEGER only; it is 64-bit there


class Base(DeclarativeBase):
    """Declarative base; JSON columns hold plain dicts and lists."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012  (SQLAlchemy reads it so)


class Tenant(Base):
    """
    A department, and the pointers to what it answers with, which alone are mutable: live, canary (a share of the
    traffic, above 0 and below 1) and shadow (a share that is answered once more, unseen; above 0, up to 1). Limits are
    of all its keys together; `log_days`: how long its log of requests is kept. None is no limit. `fallbacks`: models
    elsewhere that may be asked when no engine answers, in their order; nothing is sent to others.
    """

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    description: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[float] = mapped_column(default=time.time)
    # No foreign keys here: prompts and releases point to their tenant already, and a cycle cannot be created in one go.
    prompt_id: Mapped[str | None] = mapped_column(String(64))
    live_release_id: Mapped[str | None] = mapped_column(String(64))
    canary_release_id: Mapped[str | None] = mapped_column(String(64))
    canary_share: Mapped[float | None]
    shadow_release_id: Mapped[str | None] = mapped_column(String(64))
    shadow_share: Mapped[float | None]
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    tokens_per_month: Mapped[int | None] = mapped_column(BigInteger)
    log_days: Mapped[int | None]
    fallbacks: Mapped[list[Any] | None]


class ApiKey(Base):
    """
    A bearer key: only its HMAC is kept. `prefix` finds the row, the HMAC proves it.

    `scopes`: what it may do, names with commas. `replaces`: the key that it was made for when that was rotated.
    """

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    prefix: Mapped[str] = mapped_column(String(24), unique=True)
    hmac: Mapped[str] = mapped_column(String(64))
    label: Mapped[str] = mapped_column(String(128), default="")
    created_at: Mapped[float] = mapped_column(default=time.time)
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    scopes: Mapped[str] = mapped_column(String(64))
    replaces: Mapped[str | None] = mapped_column(String(64))
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    tokens_per_month: Mapped[int | None] = mapped_column(BigInteger)


class Prompt(Base):
    """A tenant's prompt: system text and answer schema, immutable, named by its digest."""

    __tablename__ = "prompts"
    __table_args__ = (UniqueConstraint("tenant_id", "digest"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    digest: Mapped[str] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(default=time.time)


class File(Base):
    """
    A file's bytes as they came in; the content lies in the blob folder under its SHA-256.

    `status_details` says why it is of no use for its purpose, if so.
    """

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    filename: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    purpose: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[float] = mapped_column(default=time.time)
    expires_at: Mapped[float | None]
    status_details: Mapped[str | None] = mapped_column(Text)


class VectorStore(Base):
    """
    A set of documents with one embedder. `generation` grows by one with every change.

    `name` is the operators' handle, unique within the tenant; of a store made through the API it is the store's id, and
    `title` is what the API calls its name. `embedder_digest` says in which vectors the passages are searched: it is
    swapped, in one transaction, once every passage has a vector of the new embedder; until then the new one's stands in
    `next_embedder_digest`. Tombstones up to
    `purged_generation` are gone: a reader of an older generation loads the store anew.
    """

    __tablename__ = "vector_stores"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    title: Mapped[str] = mapped_column(Text, default="")
    description: Mapped[str] = mapped_column(Text, default="")
    attributes: Mapped[dict[str, Any]] = mapped_column(default=dict)
    embedder: Mapped[str] = mapped_column(String(256))
    embedder_digest: Mapped[str] = mapped_column(String(80))
    next_embedder_digest: Mapped[str | None] = mapped_column(String(80))
    dimensions: Mapped[int]
    chunking: Mapped[dict[str, Any] | None]
    generation: Mapped[int] = mapped_column(BigInteger, default=0)
    purged_generation: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[float] = mapped_column(default=time.time)
    last_active_at: Mapped[float] = mapped_column(default=time.time)
    expires_after_days: Mapped[int | None]


class Source(Base):
    """
    Where documents of a store come from and are kept equal to: a folder, a git repository, a web site, a bucket.

    `options` are the operator's, `state` is what the connector remembers between two runs.
    """

    __tablename__ = "sources"
    __table_args__ = (UniqueConstraint("store_id", "kind", "uri"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    store_id: Mapped[str] = mapped_column(ForeignKey("vector_stores.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    uri: Mapped[str] = mapped_column(Text)
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    state: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[float] = mapped_column(default=time.time)
    synced_at: Mapped[float | None]


class Document(Base):
    """
    One source document as last indexed. `source` (its resolved path or URL) is unique within the store.

    `fingerprint` is the cheap gate of a sync (size and time, ETag, blob id), `sha256` the certain one; both are written
    with the passages, never before. `generation` is the store's when the row last changed. `status`: in_progress,
    completed, failed or cancelled; `error` {code, message} says why the last attempt failed, and the passages of the
    attempt before it stay. `own_attributes` is what the document says of itself; `attributes` is that and, over it,
    what it was given.
    """

    __tablename__ = "documents"
    __table_args__ = (
        UniqueConstraint("store_id", "source"),
        Index("ix_documents_store_generation", "store_id", "generation"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    store_id: Mapped[str] = mapped_column(ForeignKey("vector_stores.id"), index=True)
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    source: Mapped[str] = mapped_column(Text)
    filename: Mapped[str] = mapped_column(Text)
    title: Mapped[str] = mapped_column(Text)
    media_type: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    source_id: Mapped[str | None] = mapped_column(String(64), index=True)
    batch_id: Mapped[str | None] = mapped_column(String(64), index=True)
    fingerprint: Mapped[str] = mapped_column(Text, default="")
    generation: Mapped[int] = mapped_column(BigInteger, default=0)
    attributes: Mapped[dict[str, Any]] = mapped_column(default=dict)
    own_attributes: Mapped[dict[str, Any]] = mapped_column(default=dict)
    chunking: Mapped[dict[str, Any] | None]
    language: Mapped[str] = mapped_column(String(8), default="")
    status: Mapped[str] = mapped_column(String(16), default="completed")
    error: Mapped[dict[str, Any] | None]
    usage_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[float] = mapped_column(default=time.time)
    updated_at: Mapped[float] = mapped_column(default=time.time)


class DocumentText(Base):
    """
    A block of a document's text; in the order of `ordinal` they are the text (`ryorin_index.texts`).

    A table of its own: a row of `documents` is read and written without it, and an edit writes the blocks it touches.
    """

    __tablename__ = "document_texts"
    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(Text)


class Passage(Base):
    """
    A piece of a document that is searched and quoted. `id` is its stable 64-bit id in FAISS.

    `start` and `end` are character offsets into the document's text; `sha256`, of the embedded text, finds its vector.
    `generation` is the store's generation that added it, so a reader that has generation g loads only what is newer.
    `tokens` counts the embedder's tokens. Passages of one `fold_key` say the same: a search shows the best of them.
    """

    __tablename__ = "passages"
    __table_args__ = (
        Index("ix_passages_store_generation", "store_id", "generation"),
        {"sqlite_autoincrement": True},
    )
    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    store_id: Mapped[str] = mapped_column(ForeignKey("vector_stores.id"))
    document_id: Mapped[str] = mapped_column(ForeignKey("documents.id"), index=True)
    generation: Mapped[int] = mapped_column(BigInteger)
    ordinal: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    heading: Mapped[str] = mapped_column(Text, default="")
    start: Mapped[int]
    end: Mapped[int]
    page: Mapped[int | None]
    tokens: Mapped[int] = mapped_column(default=0)
    language: Mapped[str] = mapped_column(String(8), default="")
    fold_key: Mapped[str] = mapped_column(String(32), default="")


class Vector(Base):
    """
    The vector of a text under an embedder, float32, little-endian, unit length; kept by the text's digest.

    So a passage that moved, a renamed document, a snapshot brought back and a run that was broken off cost no
    embedding, and the vectors of a new embedder come into being beside the old ones. The rows lie in the order they
    came in: those of a document are written and read together; in the order of digests each had a page of its own.
    """

    __tablename__ = "vectors"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    embedder_digest: Mapped[str] = mapped_column(String(80), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    vector: Mapped[bytes] = mapped_column(LargeBinary)


class Tombstone(Base):
    """
    A passage that was removed, at which generation: what a reader with an older one must drop.

    The key is in the order they are read, and in SQLite it is all there is: a removal writes to one tree.
    """

    __tablename__ = "tombstones"
    __table_args__ = ({"sqlite_with_rowid": False},)
    store_id: Mapped[str] = mapped_column(ForeignKey("vector_stores.id"), primary_key=True)
    generation: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    passage_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


class Snapshot(Base):
    """A store's documents and passages as they were at a generation; they lie in the blob folder under `sha256`."""

    __tablename__ = "snapshots"
    __table_args__ = (UniqueConstraint("store_id", "name"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    store_id: Mapped[str] = mapped_column(ForeignKey("vector_stores.id"))
    name: Mapped[str] = mapped_column(String(64))
    generation: Mapped[int] = mapped_column(BigInteger)
    embedder: Mapped[str] = mapped_column(String(256))
    embedder_digest: Mapped[str] = mapped_column(String(80))
    documents: Mapped[int]
    passages: Mapped[int]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(default=time.time)


class FileBatch(Base):
    """Files that were given to a store in one call; its documents carry its id."""

    __tablename__ = "file_batches"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    store_id: Mapped[str] = mapped_column(ForeignKey("vector_stores.id"), index=True)
    created_at: Mapped[float] = mapped_column(default=time.time)
    cancelled_at: Mapped[float | None]


class Dataset(Base):
    """
    An immutable, versioned set of training rows; they lie in the blob folder under `digest`.

    `kind`: chat, preference or rating. `lineage`: {origin: files, logs, people, fix or split; files: [{name, sha256,
    format, rows}]; parents: digests of the datasets it was made from; note}, and what was changed on the way.
    """

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("tenant_id", "digest"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    filename: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    rows: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16), default="chat")
    lineage: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[float] = mapped_column(default=time.time)


class Purpose(Base):
    """A purpose statement of a dataset (`ryorin.purpose`); append-only, the newest of a dataset counts."""

    __tablename__ = "purposes"
    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), index=True)
    digest: Mapped[str] = mapped_column(String(64))
    statement: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(default=time.time)


class Job(Base):
    """
    A long piece of work. `status`: queued, running, paused, succeeded, failed or cancelled.

    A worker holds a job until `lease_until`, by the database's clock, and writes only while `lease_token` is its own.
    Of a queued job `lease_until` says before when it is not to be taken.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_tenant_idempotency", "tenant_id", "idempotency_key", unique=True),
        Index("ix_jobs_status_kind", "status", "kind"),
    )
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    kind: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16), default="running")
    params: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(default=time.time)
    finished_at: Mapped[float | None]
    idempotency_key: Mapped[str | None] = mapped_column(String(128))
    lease_token: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any] | None]


class JobEvent(Base):
    """What happened to a job; append-only. `level`: info, warn or error; `type`: message or metrics."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_created", "job_id", "created_at"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[float] = mapped_column(default=time.time)
    level: Mapped[str] = mapped_column(String(8), default="info")
    type: Mapped[str] = mapped_column(String(16), default="message")
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]


class Adapter(Base):
    """
    A LoRA adapter. `name` is `<tenant>-<digest12>`, unique and immutable; so is its folder.

    `prompt_digest` is empty when it is not known for which prompt it was trained (an imported one). `deleted_at`: its
    files are gone; the row stays because an old release names it.
    """

    __tablename__ = "adapters"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    digest: Mapped[str] = mapped_column(String(64))
    base_digest: Mapped[str] = mapped_column(String(64))
    prompt_digest: Mapped[str] = mapped_column(String(64))
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    rank: Mapped[int]
    manifest: Mapped[dict[str, Any]]
    created_at: Mapped[float] = mapped_column(default=time.time)
    deleted_at: Mapped[float | None]


class Release(Base):
    """What a tenant answers with, pinned as a whole; immutable. `version` counts from 1 within the tenant."""

    __tablename__ = "releases"
    __table_args__ = (UniqueConstraint("tenant_id", "version"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    base_digest: Mapped[str] = mapped_column(String(64))
    adapter_id: Mapped[str | None] = mapped_column(ForeignKey("adapters.id"))
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompts.id"))
    store_ids: Mapped[list[Any]]
    retrieval: Mapped[dict[str, Any]]
    evidence: Mapped[dict[str, Any] | None]
    note: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[float] = mapped_column(default=time.time)


class Promotion(Base):
    """One line of a tenant's history of live releases; append-only. `kind`: promote or rollback."""

    __tablename__ = "promotions"
    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    release_id: Mapped[str] = mapped_column(ForeignKey("releases.id"))
    previous_release_id: Mapped[str | None] = mapped_column(ForeignKey("releases.id"))
    kind: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(default=time.time)


class Gateway(Base):
    """A running gateway. `seen_at`, by the database's clock, says that it lives; `place` is for people."""

    __tablename__ = "gateways"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    place: Mapped[str] = mapped_column(Text)
    base_digest: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[float] = mapped_column(default=time.time)
    seen_at: Mapped[float]


class Load(Base):
    """
    A wish that a gateway loads a release before traffic goes to it. `status`: wanted, done or failed; `reason`: why it
    failed, or what it waits for. Who wished deletes it.
    """

    __tablename__ = "loads"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    release_id: Mapped[str] = mapped_column(ForeignKey("releases.id"))
    gateway_id: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[float] = mapped_column(default=time.time)
    status: Mapped[str] = mapped_column(String(16), default="wanted")
    reason: Mapped[str | None] = mapped_column(Text)


class RequestLog(Base):
    """
    One answered request: what was asked, which release answered, from which passages; append-only.

    `asker`: who asked, by the client's word, as a keyed hash (`catalog/logs.py`); None when it named nobody.
    `part`: live, canary, shadow, pinned or fallback; None in rows from before there were parts. `shadow_of`: the
    request that a shadow's row belongs to. `passed_release_id`: a canary that should have answered and could not;
    `reason` says why, as it does of a shadow that failed, and which model answered as a fallback.
    """

    __tablename__ = "request_logs"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"))
    release_id: Mapped[str] = mapped_column(ForeignKey("releases.id"))
    created_at: Mapped[float] = mapped_column(default=time.time, index=True)
    messages: Mapped[list[Any]]
    answer: Mapped[str] = mapped_column(Text)
    passages: Mapped[list[Any]]
    prompt_tokens: Mapped[int] = mapped_column(default=0)
    completion_tokens: Mapped[int] = mapped_column(default=0)
    retrieval_ms: Mapped[float] = mapped_column(default=0.0)
    first_token_ms: Mapped[float | None]
    total_ms: Mapped[float] = mapped_column(default=0.0)
    status: Mapped[str] = mapped_column(String(16))
    part: Mapped[str | None] = mapped_column(String(16))
    shadow_of: Mapped[str | None] = mapped_column(String(64))
    passed_release_id: Mapped[str | None] = mapped_column(String(64))
    reason: Mapped[str | None] = mapped_column(Text)
    asker: Mapped[str | None] = mapped_column(String(64), index=True)


class Usage(Base):
    """
    What a key used in a window of time: a minute (`2026-11-25T15:04`) or a month (`2026-11`), UTC.

    Shadows are not counted: nobody asked for them.
    """

    __tablename__ = "usage"
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    window: Mapped[str] = mapped_column(String(16), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    requests: Mapped[int] = mapped_column(BigInteger, default=0)
    tokens: Mapped[int] = mapped_column(BigInteger, default=0)


class AuditEvent(Base):
    """
    An administrative act, written in the transaction that does it; append-only, as triggers see to.

    `actor`: a key by its prefix, or the user of the machine that ran a command. `target`: what it was done to.
    """

    __tablename__ = "audit_events"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    created_at: Mapped[float] = mapped_column(default=time.time, index=True)
    actor: Mapped[str] = mapped_column(String(160))
    act: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(256))
    detail: Mapped[dict[str, Any]]
    request_id: Mapped[str | None] = mapped_column(String(64))
