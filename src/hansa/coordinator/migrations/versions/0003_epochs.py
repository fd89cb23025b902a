"""Who coordinates, and who stands by."""

from alembic import op

from hansa.database import columns

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table."""
    body = {"number": int | None, "holder": str | None, "keys": str | None, "at": str}
    op.create_table("epoch", *columns({"address": str}, **body))
