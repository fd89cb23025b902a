"""Seats in secure sums, the identities of others, and what an owner asks of their company."""

from alembic import op

from hansa.database import columns

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables of secure sums."""
    op.create_table("seat", *columns({"run": str, "attempt": int}, body=bytes, rules=bytes))
    op.create_table("member", *columns({"name": str}, identity=bytes | None, words=str | None))
    op.create_table("rule", *columns({"name": str}, value=int))
