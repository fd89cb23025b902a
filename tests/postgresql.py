"""The PostgreSQL server that the tests may use, where there is one."""

from __future__ import annotations

import os

import pytest
import sqlalchemy as sa


def server() -> str:
    """The URL of a server of which everything may be dropped, or a skip that says what is missing."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'hansa[postgres]'")
    url = os.environ.get("HANSA_TEST_POSTGRESQL", "")
    if not url:
        pytest.skip("no PostgreSQL: set HANSA_TEST_POSTGRESQL, see tools/postgresql.sh")
    return url


def engine(url: str) -> sa.Engine:
    """To that server."""
    return sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def empty_schema(name: str) -> str:
    """The URL of an empty schema there; tests that run side by side take different names."""
    url = server()
    connected = engine(url)
    with connected.begin() as connection:
        connection.execute(sa.text(f"DROP SCHEMA IF EXISTS {name} CASCADE"))
        connection.execute(sa.text(f"CREATE SCHEMA {name}"))
    connected.dispose()
    return f"{url}?options=-csearch_path%3D{name}"
