"""Offers, answers, the latest asks, memories."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "offer",
        sa.Column("dataset", sa.String, primary_key=True),
        sa.Column("source", sa.JSON, nullable=False),
        sa.Column("allow", sa.JSON, nullable=False),
    )
    op.create_table(
        "answer",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("memory", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "latest",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("federation", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
    )
    op.create_table(
        "memory",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
