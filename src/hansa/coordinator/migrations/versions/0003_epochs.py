"""Who coordinates, and who stands by."""

from alembic import op

from hansa.database import columns

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table("epoch", *columns({"address": str}, number=int | None, holder=str | None, keys=str | None))
