"""The identity of a party, which others pin."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column."""
    op.add_column("party", sa.Column("identity", sa.LargeBinary, nullable=True))
