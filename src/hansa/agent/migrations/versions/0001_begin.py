"""Offers, answers, the latest asks, memories."""

from alembic import op

from hansa.database import columns

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table("offer", *columns({"dataset": str}, source=dict, allow=list))
    op.create_table(
        "answer", *columns({"run": str, "version": int}, attempt=int, round=int, weight=float, body=bytes, memory=bytes)
    )
    op.create_table("latest", *columns({"run": str}, federation=str, version=int, digest=str))
    op.create_table("memory", *columns({"run": str}, body=bytes))
