"""why a file is of no use for its purpose"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("files", sa.Column("status_details", sa.Text(), nullable=True))
