"""fewer pages for an edit: texts in blocks, vectors in the order they came, tombstones in one tree, unused indexes gone"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        "document_texts",
        sa.Column("document_id", sa.String(length=64), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["document_id"], ["documents.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("document_id", "ordinal"),
    )
    # One block each: the next edit of a document cuts its text.
    op.execute(
        "INSERT INTO document_texts (document_id, ordinal, text) "
        "SELECT id, 0, text FROM documents WHERE text <> '' ORDER BY id"
    )
    op.drop_column("documents", "text")
    op.drop_index("ix_passages_tenant_id", "passages")
    op.drop_index("ix_passages_store_fold", "passages")
    if sqlite:
        _vectors_in_order()
    _tombstones_in_one_tree(sqlite)


def _vectors_in_order() -> None:
    """SQLite kept them by digest, in pages that each held parts of a few; now in the order of their passages."""
    op.rename_table("vectors", "vectors_by_digest")
    op.create_table(
        "vectors",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("embedder_digest", sa.String(length=80), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.PrimaryKeyConstraint("tenant_id", "embedder_digest", "sha256"),
    )
    op.execute(
        "INSERT INTO vectors (tenant_id, embedder_digest, sha256, vector) "
        "SELECT v.tenant_id, v.embedder_digest, v.sha256, v.vector FROM vectors_by_digest v "
        "LEFT JOIN (SELECT tenant_id, sha256, MIN(id) AS first FROM passages GROUP BY tenant_id, sha256) p "
        "ON p.tenant_id = v.tenant_id AND p.sha256 = v.sha256 ORDER BY p.first"
    )
    op.drop_table("vectors_by_digest")


def _tombstones_in_one_tree(sqlite: bool) -> None:
    op.drop_index("ix_tombstones_store_generation", "tombstones")
    key = ["store_id", "generation", "passage_id"]
    if not sqlite:
        op.drop_constraint("tombstones_pkey", "tombstones")
        op.create_primary_key("tombstones_pkey", "tombstones", key)
        return
    op.rename_table("tombstones", "tombstones_by_passage")
    op.create_table(
        "tombstones",
        sa.Column("store_id", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("passage_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["store_id"], ["vector_stores.id"]),
        sa.PrimaryKeyConstraint(*key),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO tombstones (store_id, generation, passage_id) "
        "SELECT store_id, generation, passage_id FROM tombstones_by_passage ORDER BY store_id, generation, passage_id"
    )
    op.drop_table("tombstones_by_passage")
