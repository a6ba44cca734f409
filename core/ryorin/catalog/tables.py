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
    """A department. `live_release_id` is the one mutable pointer of the system."""

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    description: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[float] = mapped_column(default=time.time)
    # No foreign keys here: prompts and releases point to their tenant already, and a cycle cannot be created in one go.
    prompt_id: Mapped[str | None] = mapped_column(String(64))
    live_release_id: Mapped[str | None] = mapped_column(String(64))


class ApiKey(Base):
    """A bearer key: only its HMAC is kept. `prefix` finds the row, the HMAC proves it."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    prefix: Mapped[str] = mapped_column(String(24), unique=True)
    hmac: Mapped[str] = mapped_column(String(64))
    label: Mapped[str] = mapped_column(String(128), default="")
    created_at: Mapped[float] = mapped_column(default=time.time)
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


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
    """A file's bytes as they came in; the content lies in the blob folder under its SHA-256."""

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    filename: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    purpose: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[float] = mapped_column(default=time.time)


class VectorStore(Base):
    """A named set of documents with one embedder. `generation` grows by one with every change."""

    __tablename__ = "vector_stores"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    embedder: Mapped[str] = mapped_column(String(256))
    dimensions: Mapped[int]
    generation: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[float] = mapped_column(default=time.time)


class Document(Base):
    """One source document as last indexed. `source` (its resolved path or URL) is unique within the store."""

    __tablename__ = "documents"
    __table_args__ = (UniqueConstraint("store_id", "source"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    store_id: Mapped[str] = mapped_column(ForeignKey("vector_stores.id"), index=True)
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    source: Mapped[str] = mapped_column(Text)
    filename: Mapped[str] = mapped_column(Text)
    title: Mapped[str] = mapped_column(Text)
    media_type: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(default=time.time)
    updated_at: Mapped[float] = mapped_column(default=time.time)


class Passage(Base):
    """
    A piece of a document that is searched and quoted. `id` is its stable 64-bit id in FAISS.

    `start` and `end` are character offsets into `Document.text`; `vector` is float32, little-endian, unit length.
    `generation` is the store's generation that added it, so a reader that has generation g loads only what is newer.
    """

    __tablename__ = "passages"
    __table_args__ = (Index("ix_passages_store_generation", "store_id", "generation"), {"sqlite_autoincrement": True})
    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
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
    vector: Mapped[bytes] = mapped_column(LargeBinary)


class Dataset(Base):
    """An immutable, versioned set of training examples; the rows lie in the blob folder under `digest`."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("tenant_id", "digest"),)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    filename: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    rows: Mapped[int]
    created_at: Mapped[float] = mapped_column(default=time.time)


class Job(Base):
    """A long piece of work. `status`: running, succeeded, failed or cancelled."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    kind: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16), default="running")
    params: Mapped[dict[str, Any]]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(default=time.time)
    finished_at: Mapped[float | None]


class Adapter(Base):
    """A LoRA adapter. `name` is `<tenant>-<digest12>`, unique and immutable; so is its folder."""

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


class RequestLog(Base):
    """One answered request: what was asked, which release answered, from which passages; append-only."""

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
