"""What an agent remembers."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from hansa.database import Database

HEAD = "0001"
MIGRATIONS = Path(__file__).parent / "migrations"

metadata = sa.MetaData()
sa.Table(
    "offer",
    metadata,
    sa.Column("dataset", sa.String, primary_key=True),
    sa.Column("source", sa.JSON, nullable=False),
    sa.Column("allow", sa.JSON, nullable=False),
)
sa.Table(
    "answer",
    metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("memory", sa.LargeBinary, nullable=False),
)
sa.Table(
    "latest",
    metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("federation", sa.String, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
)
sa.Table(
    "memory",
    metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)


class AgentStore(Database):
    """The agent's database.

    Args:
        home: its folder; made if it is not there.
    """

    def __init__(self, home: Path) -> None:
        super().__init__(home / "agent.db", metadata, MIGRATIONS, HEAD)
