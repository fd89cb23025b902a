"""Simulation on one machine: where it keeps a run, and how it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hansa as hs
from hansa.data.contract import ColumnRule
from hansa.data.source import write_csv
from hansa.errors import ContractError, DataError, RunError
from hansa.run import Event

X = np.linspace(-1, 1, 16)
TABLE = hs.Table.of({"x": X, "y": 2 * X})
PARTIES = {"a": TABLE, "b": TABLE}
STUDY = hs.Federation(name="line", task=hs.LinearRegression(target="y"), method=hs.FedSGD(), rounds=3)


def test_parties_may_be_files(tmp_path: Path) -> None:
    path = tmp_path / "甲.csv"
    write_csv(path, TABLE)
    from_files = STUDY.run(hs.Local({"a": path, "b": str(path)}))
    assert from_files.parameters.tobytes() == STUDY.run(hs.Local(PARTIES)).parameters.tobytes()
    with pytest.raises(DataError, match="no such file"):
        hs.Local({"a": tmp_path / "none.csv"})


def test_a_seed_of_its_own_is_that_of_the_run() -> None:
    run = STUDY.run(hs.Local(PARTIES, seed=9))
    assert run.federation.seed == 9
    assert run.federation.hash == STUDY.model_copy(update={"seed": 9}).hash
    assert run.setup is not None
    assert run.setup.seed == 9


def test_nobody_joins_an_open_study_in_a_simulation_and_its_asks_say_among_how_many() -> None:
    opened = STUDY.model_copy(update={"cohort": hs.All(open=True)}).run(hs.Local(PARTIES))
    asked = [event.body["among"] for event in opened.events if event.kind == "asked"]
    assert asked == [len(PARTIES)] * len(asked)
    assert opened.parameters.tobytes() == STUDY.run(hs.Local(PARTIES)).parameters.tobytes()


def test_every_event_is_told_as_it_happens() -> None:
    told: list[Event] = []
    run = STUDY.run(hs.Local(PARTIES, follow=told.append))
    assert told == run.events
    assert all(len(event.at) == len("2025-01-01T00:00:00.000+00:00") for event in told)


def test_a_run_is_kept_in_its_own_folder(tmp_path: Path) -> None:
    one, other = (STUDY.run(hs.Local(PARTIES, folder=tmp_path)) for _ in range(2))
    assert one.id != other.id
    assert {path.name for path in tmp_path.iterdir()} == {one.id, other.id}
    assert hs.Run.load(tmp_path / one.id).events == one.events


def test_a_failed_run_is_kept_with_its_reason(tmp_path: Path) -> None:
    bad = hs.Table.of({"x": X, "y": np.full(16, np.nan)})
    with pytest.raises(RunError) as caught:
        STUDY.run(hs.Local({**PARTIES, "a": bad}, folder=tmp_path))
    [folder] = tmp_path.iterdir()
    run = hs.Run.load(folder)
    assert run.status == "failed"
    assert run.reason == str(caught.value)
    assert run.reason.startswith("round 1: 1 of 2 contributions could be counted")
    assert [e.body["party"] for e in run.events if e.kind == "refused"] == ["a"]


def test_a_table_that_breaks_the_contract_is_refused_before_anything_runs(tmp_path: Path) -> None:
    contract = hs.Contract(columns={"x": ColumnRule(type="number", high=0.5)})
    federation = STUDY.model_copy(update={"contract": contract})
    with pytest.raises(ContractError, match=r"party 'a'.*row 13: 0\.6 is above 0\.5"):
        federation.run(hs.Local(PARTIES, folder=tmp_path))
    assert not list(tmp_path.iterdir())


def test_bytes_are_counted() -> None:
    run = STUDY.run(hs.Local(PARTIES))
    arrived = [e.body for e in run.events if e.kind == "arrived" and e.body["work"] == "train"]
    for body in arrived:
        assert body["bytes_in"] == 2 * 2 * 8  # two parties, two float64 each
        assert body["bytes_out"] == 2 * (2 + 1 + 1) * 8  # parameters, mean, scale
        assert body["seconds"] >= 0


def test_a_model_that_diverged_says_so_and_not_which_sum_overflowed() -> None:
    x = np.linspace(-1.0, 1.0, 40)
    table = hs.Table.of({"x": x, "y": 1e9 * x})
    federation = hs.Federation(
        task=hs.LinearRegression(target="y"),
        method=hs.FedAvg(local=hs.SGD(lr=300.0, batch_size="all", epochs=8)),
        preprocessing=hs.Moments(standardise=False),
    )
    with pytest.raises(hs.errors.RunError, match="the model has diverged"):
        federation.run(hs.Local({"a": table, "b": table}))


def test_a_checkpoint_after_every_no_exchange_is_refused() -> None:
    with pytest.raises(hs.errors.UsageError, match="checkpoint after every 0"):
        hs.Local({}, every=0)
