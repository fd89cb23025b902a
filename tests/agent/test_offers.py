"""What a party's owner offers: kept, shown without a secret, taken back."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from hansa.agent.offers import Offers, checked_kinds, named
from hansa.data.source import Source
from hansa.errors import DataError, UsageError


@pytest.fixture
def offers(tmp_path: Path) -> Iterator[Offers]:
    kept = Offers(tmp_path / "agent")
    yield kept
    kept.close()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("x,y\n1,0\n2,1\n", "utf-8")
    return path


def test_an_offer_is_read_once_and_kept_by_its_full_path(
    offers: Offers, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    offer = offers.add("t", Source(path="rows.csv"), ("linear-regression",))
    assert offer.table.rows == 2
    monkeypatch.chdir("/")
    [again] = offers.read()
    assert (again.dataset, again.allow) == ("t", ("linear-regression",))
    assert offers.listed()[0]["source"] == str(rows)


def test_a_relative_sqlite_file_is_found_from_every_folder(
    offers: Offers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(tmp_path / "p.db") as base:
        base.execute("CREATE TABLE t (x REAL)")
        base.execute("INSERT INTO t VALUES (1.5)")
    base.close()
    monkeypatch.chdir(tmp_path)
    offers.add("t", Source(url="sqlite:///p.db", sql="SELECT x FROM t"), ("linear-regression",))
    monkeypatch.chdir("/")
    [offer] = offers.read()
    assert list(offer.table.column("x")) == [1.5]


def test_a_password_is_never_shown(offers: Offers, monkeypatch: pytest.MonkeyPatch) -> None:
    from hansa.agent import offers as module
    from hansa.data.table import Table

    monkeypatch.setattr(module, "read", lambda source: Table.of({"x": [1.0]}))
    source = Source(url="postgresql://me:hush@host/base", sql="SELECT 1")
    offers.add("t", source, ("linear-regression",))
    shown = offers.listed()[0]["source"]
    assert "hush" not in shown
    assert shown.startswith("postgresql://me:***@host/base")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_only_the_owner_may_read_what_is_kept(offers: Offers, tmp_path: Path) -> None:
    mode = stat.S_IMODE((tmp_path / "agent" / "agent.db").stat().st_mode)
    assert mode & 0o077 == 0


def test_a_kind_is_allowed_beside_the_others_and_named_anew_for_one_table(offers: Offers, rows: Path) -> None:
    source = Source(path=str(rows))
    offers.add("a", source, ("linear-regression",))
    offers.add("b", source, ("softmax-regression",))
    offers.allow(("logistic-regression", "linear-regression"))
    assert {o["dataset"]: o["allow"] for o in offers.listed()} == {
        "a": ["linear-regression", "logistic-regression"],
        "b": ["softmax-regression", "logistic-regression", "linear-regression"],
    }
    offers.add("b", source, ("softmax-regression",))
    assert offers.listed()[1]["allow"] == ["softmax-regression"]
    offers.add("b", source, ())
    assert offers.listed()[1]["allow"] == ["softmax-regression"]


def test_an_offer_is_taken_back(offers: Offers, rows: Path) -> None:
    offers.add("tumours", Source(path=str(rows)), ("linear-regression",))
    with pytest.raises(UsageError, match=r"'tumour'.*Did you mean 'tumours'"):
        offers.remove("tumour")
    offers.remove("tumours")
    assert len(offers) == 0
    assert offers.read() == []


def test_a_table_on_which_nothing_is_allowed_is_not_offered(offers: Offers, rows: Path) -> None:
    with pytest.raises(UsageError, match="no kind of task is allowed on 't'"):
        offers.add("t", Source(path=str(rows)), ())
    assert len(offers) == 0


def test_a_table_that_went_away_is_named(offers: Offers, rows: Path) -> None:
    offers.add("t", Source(path=str(rows)), ("linear-regression",))
    rows.unlink()
    with pytest.raises(DataError, match="t: no such file"):
        offers.read()


def test_words_of_the_command_line() -> None:
    name, source = named("病历=rows.csv", "gb18030")
    assert (name, source.path, source.encoding) == ("病历", "rows.csv", "gb18030")
    with pytest.raises(UsageError, match="names no data set"):
        named("rows.csv")
    assert checked_kinds(["linear-regression,softmax-regression", "linear-regression"]) == (
        "linear-regression",
        "softmax-regression",
    )
    with pytest.raises(UsageError, match="Did you mean 'logistic-regression'"):
        checked_kinds(["logistic-regresion"])
