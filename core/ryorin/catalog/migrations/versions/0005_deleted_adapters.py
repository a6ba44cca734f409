"""adapters that old releases name can be deleted"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("adapters", sa.Column("deleted_at", sa.Double(), nullable=True))
