"""canary and shadow, what answered a request, gateways that load a release before it gets traffic"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    for part in ("canary", "shadow"):
        op.add_column("tenants", sa.Column(f"{part}_release_id", sa.String(length=64), nullable=True))
        op.add_column("tenants", sa.Column(f"{part}_share", sa.Double(), nullable=True))
    op.add_column("request_logs", sa.Column("part", sa.String(length=16), nullable=True))
    op.add_column("request_logs", sa.Column("shadow_of", sa.String(length=64), nullable=True))
    op.add_column("request_logs", sa.Column("passed_release_id", sa.String(length=64), nullable=True))
    op.add_column("request_logs", sa.Column("reason", sa.Text(), nullable=True))
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "loads",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("release_id", sa.String(length=64), nullable=False),
        sa.Column("gateway_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.ForeignKeyConstraint(["release_id"], ["releases.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_loads_tenant_id"), "loads", ["tenant_id"])
    op.create_index(op.f("ix_loads_gateway_id"), "loads", ["gateway_id"])
