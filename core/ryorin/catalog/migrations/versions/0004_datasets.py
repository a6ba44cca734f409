"""datasets: kind, lineage; purpose statements"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("datasets", sa.Column("kind", sa.String(length=16), nullable=False, server_default="chat"))
    op.add_column("datasets", sa.Column("lineage", sa.JSON(), nullable=False, server_default="{}"))
    op.create_table(
        "purposes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("statement", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_purposes_tenant_id"), "purposes", ["tenant_id"])
    op.create_index(op.f("ix_purposes_dataset_id"), "purposes", ["dataset_id"])
    # Until now a dataset came from one file, of which the name alone is known.
    connection = op.get_bind()
    datasets = sa.table("datasets", sa.column("id"), sa.column("filename"), sa.column("lineage", sa.JSON()))
    for row in connection.execute(sa.select(datasets.c.id, datasets.c.filename)).all():
        lineage = {"origin": "files", "files": [{"name": row.filename}], "parents": [], "note": ""}
        connection.execute(sa.update(datasets).where(datasets.c.id == row.id).values(lineage=lineage))
