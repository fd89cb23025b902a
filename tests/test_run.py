"""A run is its record: saved, loaded, read as a table, and ended by a model that stands alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.contribution import canonical
from hansa.errors import DataError, HansaError, RunError, StoreError, UsageError
from hansa.run import Event, decided, new_id, now


@pytest.fixture(scope="module")
def run() -> hs.Run:
    federation = hs.Federation(
        name="tumours", task=hs.LogisticRegression(target="malignant"), rounds=3, evaluation=hs.Evaluate(split="split")
    )
    return federation.run(hs.Local(hs.wisconsin.hospitals()))


def test_a_saved_run_is_the_same_run(run: hs.Run, tmp_path: Path) -> None:
    folder = run.save(tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.safetensors",
        "events.jsonl",
        "federation.json",
        "metrics.parquet",
        "model.safetensors",
    ]
    loaded = hs.Run.load(folder)
    assert (loaded.id, loaded.status, loaded.reason) == (run.id, run.status, run.reason)
    assert loaded.federation == run.federation
    assert loaded.setup == run.setup
    assert loaded.events == run.events
    assert loaded.parameters.tobytes() == run.parameters.tobytes()
    assert loaded.metrics() == run.metrics()
    assert loaded.model.encoding.to_json() == run.model.encoding.to_json()
    assert (
        loaded.save(tmp_path / "again").joinpath("checkpoint.safetensors").read_bytes()
        == (folder / "checkpoint.safetensors").read_bytes()
    )


def test_metrics_lie_in_parquet(run: hs.Run, tmp_path: Path) -> None:
    table = hs.read(run.save(tmp_path) / "metrics.parquet")
    assert table.names == ("round", "loss", "accuracy", "auc")
    assert table.column("auc").tolist() == [row["auc"] for row in run.metrics()]


@pytest.mark.parametrize(
    ("form", "library", "rows"),
    [
        ("pandas", "pandas", lambda frame: frame.to_dict("records")),
        ("polars", "polars", lambda frame: frame.to_dicts()),
        ("arrow", "pyarrow", lambda frame: frame.to_pylist()),
    ],
)
def test_metrics_come_as_a_table_of_the_readers_library(
    form: Any, library: str, rows: Callable[[Any], list[dict[str, float]]], run: hs.Run
) -> None:
    pytest.importorskip(library)
    assert rows(run.metrics(form)) == run.metrics("rows") == run.metrics()
    assert [row["round"] for row in run.metrics()] == [1, 2, 3]


def test_an_unknown_form_is_refused(run: hs.Run) -> None:
    form: Any = "excel"
    with pytest.raises(UsageError, match=r"unknown form 'excel'\. Known: rows, pandas"):
        run.metrics(form)


def test_a_missing_library_is_named_with_its_extra(run: hs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("hansa.run.import_module", no_module)
    with pytest.raises(HansaError, match=r"polars is not installed. pip install 'hansa\[polars\]'"):
        run.metrics("polars")


def test_a_run_without_an_evaluation_has_an_empty_table(tmp_path: Path) -> None:
    table = hs.Table.of({"x": [1.0, 2.0], "y": [2.0, 4.0]})
    federation = hs.Federation(task=hs.LinearRegression(target="y"), evaluation=hs.Evaluate(holdout=0), rounds=1)
    run = federation.run(hs.Local({"a": table, "b": table}))
    assert run.metrics() == []
    assert not (run.save(tmp_path) / "metrics.parquet").exists()


def test_a_run_that_has_not_begun_has_no_model(run: hs.Run) -> None:
    fresh = hs.Run("later", run.federation)
    for what in ("parameters", "model"):
        with pytest.raises(RunError, match="the run has no model yet"):
            getattr(fresh, what)


@pytest.mark.parametrize("damage", ["federation.json", "events.jsonl", "checkpoint.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b"[1, 2]\n"])
def test_a_folder_that_holds_no_run_is_refused(damage: str, content: bytes | None, run: hs.Run, tmp_path: Path) -> None:
    path = run.save(tmp_path) / damage
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    if damage.startswith("checkpoint") and content is None:
        assert hs.Run.load(tmp_path).progress is None  # it was stopped before its first exchange
    else:
        with pytest.raises(StoreError, match="holds no run of Hansa"):
            hs.Run.load(tmp_path)


def test_who_joined_is_in_the_setup_and_a_decision_says_among_how_many(run: hs.Run, tmp_path: Path) -> None:
    assert run.setup is not None
    one, name = hs.Run(run.id, run.federation), str(run.setup.parties[0])
    for event in run.events[:2]:
        one.hear(event)
    one.hear(Event(3, now(), "joined", {"party": "river 2", "round": 1, "work": "train"}))
    one.hear(Event(4, now(), "asked", {"version": 0, "parties": [name], "among": 4}))
    one.hear(Event(5, now(), "arrived", {"version": 0, "counted": [name], "excluded": {}}))
    one.save(tmp_path)
    for known in (one, hs.Run.load(tmp_path)):
        assert known.setup is not None
        assert tuple(known.setup.parties) == (*run.setup.parties, "river 2")
        assert decided(known)[0].among == 4
    assert {made.among for made in decided(run).values()} == {0}


def test_an_event_is_one_line_of_json(run: hs.Run) -> None:
    for event in run.events:
        line = canonical(event.to_json())
        assert b"\n" not in line
        assert Event(**json.loads(line)) == event


def test_identifiers_differ_and_fit_a_folder() -> None:
    ids = {new_id("a study/of 肿瘤: " + "x" * 99) for _ in range(50)}
    assert len(ids) == 50
    assert all(set(":/ ").isdisjoint(name) and len(name) < 70 for name in ids)
    assert now().endswith("+00:00")


def test_a_model_stands_alone(run: hs.Run, tmp_path: Path) -> None:
    path = run.model.save(tmp_path / "model.safetensors")
    model = hs.Model.load(path)
    for table in hs.wisconsin.hospitals().values():
        np.testing.assert_array_equal(model.predict(table), run.model.predict(table))
        assert model.score(table) == run.model.score(table)
    assert model.facts["run"] == run.id
    assert model.facts["federation"] == run.federation.hash
    assert model.facts["metrics"] == {k: v for k, v in run.metrics()[-1].items() if k != "round"}
    assert model.to_bytes() == path.read_bytes()


def test_a_file_that_is_no_model_is_refused(run: hs.Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        hs.Model.load(tmp_path / "model.safetensors")
    good = run.model.to_bytes()
    for bad in (b"", b"x" * 100, good[:-8], good[:8] + b" " + good[9:]):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(StoreError, match="is not a model that Hansa wrote"):
            hs.Model.load(tmp_path / "bad")


def test_a_table_without_a_feature_is_refused_by_name(run: hs.Run) -> None:
    table = hs.wisconsin.table().drop("mean_radius")
    with pytest.raises(DataError, match="mean_radius"):
        run.model.predict(table)
