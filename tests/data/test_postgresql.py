"""Tables read from a real PostgreSQL server, where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import sqlalchemy as sa
from tests.postgresql import engine, server

from hansa.data.source import read
from hansa.errors import DataError


@pytest.fixture
def patients() -> Iterator[str]:
    url = server()
    connected = engine(url)
    with connected.begin() as connection:
        connection.execute(sa.text('CREATE TABLE patients (id int, "半径" float, grade numeric, seen date, sex text)'))
        connection.execute(
            sa.text(
                "INSERT INTO patients VALUES (1, 2.5, 1.25, '2020-01-31', '女'), "
                "(2, NULL, NULL, NULL, NULL), (3, 'NaN', 3, '2021-02-28', 'm')"
            )
        )
    yield url
    with connected.begin() as connection:
        connection.execute(sa.text("DROP TABLE patients"))
    connected.dispose()


def test_a_table_of_postgresql_is_read_by_its_types(patients: str) -> None:
    table = read(f"{patients}#SELECT * FROM patients ORDER BY id")
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
        read(f"{patients}#SELECT * FROM nothing_there")
