"""Tables read from a real PostgreSQL server, where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import sqlalchemy as sa

from hansa.data.source import read
from hansa.errors import DataError

URL = os.environ.get("HANSA_TEST_POSTGRESQL", "")

pytestmark = pytest.mark.skipif(not URL, reason="no PostgreSQL: set HANSA_TEST_POSTGRESQL, see tools/postgresql.sh")


@pytest.fixture
def patients() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'hansa[postgres]'")
    engine = sa.create_engine(URL.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(sa.text('CREATE TABLE patients (id int, "半径" float, grade numeric, seen date, sex text)'))
        connection.execute(
            sa.text(
                "INSERT INTO patients VALUES (1, 2.5, 1.25, '2020-01-31', '女'), "
                "(2, NULL, NULL, NULL, NULL), (3, 'NaN', 3, '2021-02-28', 'm')"
            )
        )
    yield "patients"
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE patients"))
    engine.dispose()


def test_a_table_of_postgresql_is_read_by_its_types(patients: str) -> None:
    table = read(f"{URL}#SELECT * FROM {patients} ORDER BY id")
    assert [(c.name, c.type) for c in table.schema()] == [
        ("id", "number"),
        ("半径", "number"),
        ("grade", "number"),
        ("seen", "text"),
        ("sex", "text"),
    ]
    assert np.array_equal(table.column("半径"), [2.5, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(table.column("grade"), [1.25, np.nan, 3.0], equal_nan=True)
    assert list(table.column("seen")) == ["2020-01-31", None, "2021-02-28"]
    assert list(table.column("sex")) == ["女", None, "m"]


def test_a_query_that_fails_is_named_without_the_password(patients: str) -> None:
    with pytest.raises(DataError, match="nothing_there"):
        read(f"{URL}#SELECT * FROM nothing_there")
