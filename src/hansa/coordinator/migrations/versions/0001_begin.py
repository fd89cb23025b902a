"""Parties, tokens, runs, events, asks, answers, blobs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "party",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("serial", sa.String, nullable=False),
        sa.Column("expires", sa.String, nullable=False),
        sa.Column("offers", sa.JSON, nullable=False),
    )
    op.create_table(
        "token",
        sa.Column("hash", sa.String, primary_key=True),
        sa.Column("party", sa.String, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("used", sa.Boolean, nullable=False),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("federation", sa.LargeBinary),
        sa.Column("setup", sa.JSON),
        sa.Column("status", sa.String),
        sa.Column("reason", sa.String),
        sa.Column("created", sa.String),
        sa.Column("round", sa.Integer),
    )
    op.create_table(
        "event",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )
    op.create_table(
        "ask",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer),
        sa.Column("digest", sa.String),
    )
    op.create_table(
        "answer",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("party", sa.String, primary_key=True),
        sa.Column("attempt", sa.Integer),
        sa.Column("digest", sa.String),
        sa.Column("weight", sa.Float),
        sa.Column("size", sa.Integer),
        sa.Column("taken", sa.Boolean),
        sa.Column("reason", sa.String),
    )
    op.create_table(
        "blob",
        sa.Column("run", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary),
    )
