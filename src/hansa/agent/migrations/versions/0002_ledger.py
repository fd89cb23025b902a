"""What rows have cost, and what they may."""

from alembic import op

from hansa.database import columns

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the ledger."""
    op.create_table("charge", *columns({"number": int}, run=str, version=int, attempt=int, at=str, event=dict))
    op.create_table("budget", *columns({"unit": str}, epsilon=float, delta=float))
