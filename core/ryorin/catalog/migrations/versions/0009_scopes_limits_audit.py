"""scopes of keys, limits of keys and tenants, what was used, the audit log, who asked"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    for table in ("tenants", "api_keys"):
        op.add_column(table, sa.Column("requests_per_minute", sa.Integer(), nullable=True))
        op.add_column(table, sa.Column("tokens_per_minute", sa.Integer(), nullable=True))
        op.add_column(table, sa.Column("tokens_per_month", sa.BigInteger(), nullable=True))
    op.add_column("tenants", sa.Column("log_days", sa.Integer(), nullable=True))
    # Keys of before could do everything, and still can.
    everything = "chat,knowledge,train,admin"
    op.add_column("api_keys", sa.Column("scopes", sa.String(length=64), nullable=False, server_default=everything))
    op.add_column("api_keys", sa.Column("replaces", sa.String(length=64), nullable=True))
    op.add_column("request_logs", sa.Column("asker", sa.String(length=64), nullable=True))
    op.create_index(op.f("ix_request_logs_asker"), "request_logs", ["asker"])
    op.create_table(
        "usage",
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("window", sa.String(length=16), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"]),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.PrimaryKeyConstraint("key_id", "window"),
    )
    op.create_index(op.f("ix_usage_tenant_id"), "usage", ["tenant_id"])
    op.create_table(
        "audit_events",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(length=160), nullable=False),
        sa.Column("act", sa.String(length=64), nullable=False),
        sa.Column("target", sa.String(length=256), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_audit_events_tenant_id"), "audit_events", ["tenant_id"])
    op.create_index(op.f("ix_audit_events_created_at"), "audit_events", ["created_at"])
