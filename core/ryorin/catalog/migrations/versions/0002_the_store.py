"""the store: vectors by text, tombstones, snapshots, sources, file batches, leased jobs"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "vectors",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("embedder_digest", sa.String(length=80), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.PrimaryKeyConstraint("tenant_id", "embedder_digest", "sha256"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tombstones",
        sa.Column("passage_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("store_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"]),
        sa.PrimaryKeyConstraint("passage_id"),
    )
    op.create_index("ix_tombstones_store_generation", "tombstones", ["store_id", "generation"])
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("store_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("embedder", sa.String(length=256), nullable=False),
        sa.Column("embedder_digest", sa.String(length=80), nullable=False),
        sa.Column("documents", sa.Integer(), nullable=False),
        sa.Column("passages", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("store_id", "name"),
    )
    op.create_index(op.f("ix_snapshots_tenant_id"), "snapshots", ["tenant_id"])
    op.create_table(
        "sources",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("store_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("synced_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("store_id", "kind", "uri"),
    )
    op.create_index(op.f("ix_sources_tenant_id"), "sources", ["tenant_id"])
    op.create_index(op.f("ix_sources_store_id"), "sources", ["store_id"])
    op.create_table(
        "file_batches",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("store_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("cancelled_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_file_batches_tenant_id"), "file_batches", ["tenant_id"])
    op.create_index(op.f("ix_file_batches_store_id"), "file_batches", ["store_id"])

    op.add_column("files", sa.Column("expires_at", sa.Double(), nullable=True))
    for column in (
        sa.Column("title", sa.Text(), nullable=False, server_default=""),
        sa.Column("description", sa.Text(), nullable=False, server_default=""),
        sa.Column("attributes", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("embedder_digest", sa.String(length=80), nullable=False, server_default=""),
        sa.Column("next_embedder_digest", sa.String(length=80), nullable=True),
        sa.Column("chunking", sa.JSON(), nullable=True),
        sa.Column("purged_generation", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("last_active_at", sa.Double(), nullable=False, server_default="0"),
        sa.Column("expires_after_days", sa.Integer(), nullable=True),
    ):
        op.add_column("vector_stores", column)
    for column in (
        sa.Column("source_id", sa.String(length=64), nullable=True),
        sa.Column("batch_id", sa.String(length=64), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=False, server_default=""),
        sa.Column("generation", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("attributes", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("own_attributes", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("chunking", sa.JSON(), nullable=True),
        sa.Column("language", sa.String(length=8), nullable=False, server_default=""),
        sa.Column("status", sa.String(length=16), nullable=False, server_default="completed"),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("usage_bytes", sa.BigInteger(), nullable=False, server_default="0"),
    ):
        op.add_column("documents", column)
    op.create_index(op.f("ix_documents_source_id"), "documents", ["source_id"])
    op.create_index(op.f("ix_documents_batch_id"), "documents", ["batch_id"])
    op.create_index("ix_documents_store_generation", "documents", ["store_id", "generation"])
    for column in (
        sa.Column("tokens", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("language", sa.String(length=8), nullable=False, server_default=""),
        sa.Column("fold_key", sa.String(length=32), nullable=False, server_default=""),
    ):
        op.add_column("passages", column)
    op.create_index("ix_passages_store_fold", "passages", ["store_id", "fold_key"])
    for column in (
        sa.Column("idempotency_key", sa.String(length=128), nullable=True),
        sa.Column("lease_token", sa.String(length=64), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("progress", sa.JSON(), nullable=True),
    ):
        op.add_column("jobs", column)
    op.create_index("ix_jobs_tenant_idempotency", "jobs", ["tenant_id", "idempotency_key"], unique=True)
    op.create_index("ix_jobs_status_kind", "jobs", ["status", "kind"])

    # Vectors were kept with their passages and nothing said of which weights they are: only the embedder's name is known.
    op.execute(
        "UPDATE vector_stores SET embedder_digest = 'name:' || embedder, title = name, last_active_at = created_at"
    )
    op.execute(
        "INSERT INTO vectors (tenant_id, embedder_digest, sha256, vector) "
        "SELECT p.tenant_id, s.embedder_digest, p.sha256, p.vector FROM passages p "
        "JOIN vector_stores s ON s.id = p.store_id WHERE p.id IN ("
        "SELECT MIN(q.id) FROM passages q JOIN vector_stores t ON t.id = q.store_id "
        "GROUP BY q.tenant_id, t.embedder_digest, q.sha256)"
    )
    op.drop_column("passages", "vector")
