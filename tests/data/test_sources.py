import datetime
import sqlite3
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pytest
from pydantic import ValidationError

from hansa.data import database
from hansa.data.source import Source, read, write_parquet
from hansa.errors import DataError


@pytest.fixture
def clinic(tmp_path):
    """An SQLite database with one table and one line of history."""
    path = tmp_path / "诊所.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE patients (id INTEGER, 城市 TEXT, mass REAL, seen DATE)")
        database.executemany(
            "INSERT INTO patients VALUES (?, ?, ?, ?)", [(1, "上海", 1.5, "2024-05-01"), (2, None, None, "2024-05-02")]
        )
        database.execute("CREATE TABLE scans (picture BLOB)")
        database.execute("INSERT INTO scans VALUES (x'00')")
    database.close()
    return path


def test_a_table_is_read_from_sqlite_by_its_url(clinic):
    table = read(f"sqlite:///{clinic}#SELECT * FROM patients WHERE seen <> '2024:05' ORDER BY id")
    assert table.names == ("id", "城市", "mass", "seen")
    np.testing.assert_array_equal(table.column("mass"), [1.5, np.nan])
    assert table.column("城市").tolist() == ["上海", None]
    assert table.column("seen").tolist() == ["2024-05-01", "2024-05-02"]


def test_times_and_decimals_of_a_database_become_text_and_numbers():
    moments = [datetime.date(2024, 1, 2), None, datetime.datetime(2024, 1, 2, 3, 4)]
    assert database._column("a", moments).tolist() == ["2024-01-02", None, "2024-01-02T03:04:00"]
    assert database._column("a", [Decimal("1.25"), True]).tolist() == [1.25, 1.0]


def test_a_query_to_a_database_changes_nothing(clinic):
    with pytest.raises(DataError, match="gives no table"):
        read(f"sqlite:///{clinic}#DELETE FROM patients")
    assert read(f"sqlite:///{clinic}#SELECT * FROM patients").rows == 2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT * FROM patient", "no such table: patient"),
        ("SELECT id, mass AS id FROM patients", "two columns 'id'"),
        ("SELECT picture FROM scans", "'picture', row 1 holds bytes"),
        ("SELECT * FROM patients WHERE id > 9", "empty table"),
        ("SELECT 9e999 AS much", "row 1: inf"),
    ],
)
def test_a_query_that_gives_no_good_table_says_why(clinic, query, message):
    with pytest.raises(DataError, match=message):
        read(f"sqlite:///{clinic}#{query}")


def test_a_missing_database_is_not_created(tmp_path):
    with pytest.raises(DataError, match="no such database file"):
        read(f"sqlite:///{tmp_path / 'none.db'}#SELECT 1")
    assert list(tmp_path.iterdir()) == []


def test_a_password_is_never_shown():
    for url in ("nosuch://me:hush@host/name", "postgresql://me:hush@127.0.0.1:1/name"):
        with pytest.raises(DataError) as caught:
            read(f"{url}#SELECT 1")
        assert "hush" not in str(caught.value)


def test_an_address_that_is_no_url_is_refused():
    with pytest.raises(DataError, match="not a URL"):
        read(Source(url="patients", sql="SELECT 1"))


def parquet(path: Path, query: str) -> Path:
    """A file that others wrote, with what a query of DuckDB gives."""
    duckdb.sql(query).write_parquet(str(path))
    return path


def test_typed_columns_of_parquet_become_numbers_and_text(tmp_path):
    table = read(
        parquet(
            tmp_path / "a.parquet",
            "SELECT 1.25::DECIMAL(5,2) a, true b, 7::UTINYINT c, NULL d, 1::HUGEINT e,"
            " TIMESTAMP '2024-01-02 03:04:05' f, TIMESTAMPTZ '2024-01-02 03:04:05+02' g,"
            " 'x'::ENUM('x') h, TIME '03:04:05' i",
        )
    )
    assert [table.column(name)[0] for name in "abce"] == [1.25, 1.0, 7.0, 1.0]
    assert np.isnan(table.column("d")[0])
    assert [table.column(name)[0] for name in "fghi"] == [
        "2024-01-02T03:04:05",
        "2024-01-02T01:04:05+00",
        "x",
        "03:04:05",
    ]


def test_a_column_of_parquet_that_is_neither_numbers_nor_text_is_named(tmp_path):
    with pytest.raises(DataError, match="'a' is of type list"):
        read(parquet(tmp_path / "a.parquet", "SELECT [1] AS a"))


def test_parquet_is_written_and_read_back(tmp_path):
    path = tmp_path / "结果[1].parquet"
    columns = {
        "round": [1, 2, 3],
        "loss": [0.5, None, np.float64(0.25)],
        '列 "x"; DROP TABLE written; --': [1, 0.5, None],
        "none": [None, None, None],
    }
    write_parquet(path, columns)
    table = read(path)
    assert table.names == tuple(columns)
    for name, values in columns.items():
        np.testing.assert_array_equal(table.column(name), np.array(values, float))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_rows_of_large_parquet_keep_their_order(tmp_path):
    rows = np.arange(300_000)
    table = read(parquet(tmp_path / "a.parquet", "SELECT range AS a, 't' || range AS b FROM range(300_000)"))
    np.testing.assert_array_equal(table.column("a"), rows)
    assert table.column("b")[-1] == "t299999"


def test_integers_stay_integers_in_parquet(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"n": [2**53 + 1], "x": [1.0]})
    kinds = duckdb.sql(f"SELECT typeof(n), typeof(x), n FROM '{tmp_path / 'a.parquet'}'").fetchall()
    assert kinds == [("BIGINT", "DOUBLE", 2**53 + 1)]


@pytest.mark.parametrize(("folder", "columns"), [("", {"a": [2**70]}), ("none", {"a": [1]})])
def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path, folder, columns):
    with pytest.raises(DataError, match=r"cannot write a\.parquet"):
        write_parquet(tmp_path / folder / "a.parquet", columns)
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_rows_is_an_empty_table(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"a": []})
    with pytest.raises(DataError, match="empty table"):
        read(tmp_path / "a.parquet")


def test_damaged_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        read(tmp_path / "a.parquet")


def test_a_missing_file_is_named_with_those_near_it(tmp_path):
    (tmp_path / "tumours.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"no such file: .*tumors\.csv") as caught:
        read(tmp_path / "tumors.csv")
    assert "tumours.csv" in caught.value.remedy
    with pytest.raises(DataError, match="no folder"):
        read(tmp_path / "none" / "a.csv")
    with pytest.raises(DataError, match="looked for"):
        read(tmp_path / "zzz.parquet")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


def test_a_file_that_may_not_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("a\n1\n")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a\.csv cannot be opened: Permission denied"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(("name", "way_out"), [("a.xlsx", "CSV"), ("a.XLS", "CSV"), ("a.csv.gz", "Unpack")])
def test_spreadsheets_and_archives_are_refused_with_the_way_out(tmp_path, name, way_out):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="not a CSV") as caught:
        read(tmp_path / name)
    assert way_out in caught.value.remedy


def test_a_source_is_parsed_from_one_word():
    assert Source.parse("C:\\数据\\a#1.csv") == Source(path="C:\\数据\\a#1.csv")
    url = "postgresql://me@host/name"
    assert Source.parse(f"{url}#SELECT '#' FROM t") == Source(url=url, sql="SELECT '#' FROM t")
    with pytest.raises(DataError, match="needs a query"):
        Source.parse("sqlite:///x.db")
    with pytest.raises(DataError, match="no file is named"):
        Source.parse(" ")


@pytest.mark.parametrize(
    "fields", [{}, {"path": "a", "sql": "b"}, {"path": "a", "url": "b"}, {"sql": "a"}, {"file": "a"}]
)
def test_a_source_is_one_place(fields):
    with pytest.raises(ValidationError):
        Source(**fields)


def test_importing_the_data_room_loads_no_database():
    code = "import sys, hansa.data.source; print({'duckdb', 'sqlalchemy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_tables_are_read_and_written_without_pandas_and_pyarrow(tmp_path):
    code = (
        "import sys; sys.modules.update(pandas=None, pyarrow=None)\n"
        "from hansa.data.source import read, write_parquet\n"
        f"write_parquet({str(tmp_path / 'a.parquet')!r}, {{'a': [1, None]}})\n"
        f"print(read({str(tmp_path / 'a.parquet')!r}).column('a').tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1.0, nan]"
