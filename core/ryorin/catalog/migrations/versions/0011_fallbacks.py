"""models elsewhere that a tenant allows"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("tenants", sa.Column("fallbacks", sa.JSON(), nullable=True))
