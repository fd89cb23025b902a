"""What every backend keeps, whatever carries the asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import numpy as np
import pytest

import hansa as hs
from hansa.aggregation import clip
from hansa.backends import Backend
from hansa.errors import DataError, HansaError, RunError, StudyError

Make = Callable[[Mapping[str, hs.Table]], Backend]
Tables = Mapping[str, hs.Table]
Told = Callable[[str, str], str]
UNUSABLE = "its table cannot be used; the log of the agent there says why"


def study(**options: object) -> hs.Federation:
    fields: dict[str, object] = {
        "name": "tumours",
        "task": hs.LogisticRegression(target="y"),
        "method": hs.FedAvg(local=hs.SGD(lr=0.2, batch_size=8)),
        "aggregation": clip(1.0),
        "rounds": 3,
        **options,
    }
    return hs.Federation(**fields)


def broken(table: hs.Table, **columns: list[float]) -> hs.Table:
    """The table with the beginning of some columns replaced."""
    changed = {name: table.column(name).copy() for name in table.names}
    for name, values in columns.items():
        changed[name][: len(values)] = values
    return hs.Table.of(changed)


def test_a_run_ends_with_a_model_its_metrics_and_its_events(backend: Make, tables: Tables) -> None:
    run = study().run(backend(tables))
    assert (run.status, run.reason) == ("finished", "all 3 rounds were run")
    assert run.model.score(tables["river"]).keys() == {"loss", "accuracy", "auc"}
    assert [row["round"] for row in run.metrics()] == [1, 2, 3]
    assert [event.seq for event in run.events] == list(range(1, len(run.events) + 1))
    kinds = [event.kind for event in run.events]
    assert kinds[:2] == ["created", "resolved"]
    assert kinds[-1] == "finished"
    assert kinds.count("asked") == kinds.count("arrived") == 2 + 3 + 3


def test_the_record_says_who_was_asked_and_who_was_counted(backend: Make, tables: Tables) -> None:
    run = study(cohort=hs.Fixed(size=2)).run(backend(tables))
    asked = [event.body for event in run.events if event.kind == "asked"]
    arrived = [event.body for event in run.events if event.kind == "arrived"]
    for question, answer in zip(asked, arrived, strict=True):
        expected = 2 if question["work"] == "train" else 3
        assert len(question["parties"]) == expected
        assert question["parties"] == sorted(question["parties"])
        assert answer["counted"] == question["parties"]
        assert answer["version"] == question["version"]
        assert answer["excluded"] == {}
        assert answer["bytes_in"] > 0


def test_the_same_seed_and_cohorts_give_the_same_bits(backend: Make, tables: Tables) -> None:
    backwards = dict(reversed(list(tables.items())))
    one, other = (study(cohort=hs.Fixed(size=2)).run(backend(t)) for t in (tables, backwards))
    assert one.parameters.tobytes() == other.parameters.tobytes()
    assert one.metrics() == other.metrics()


def test_its_bits_are_those_of_the_plain_simulation(backend: Make, tables: Tables) -> None:
    assert study().run(backend(tables)).parameters.tobytes() == study().run(hs.Local(tables)).parameters.tobytes()


def test_a_party_that_cannot_do_the_work_is_left_out_with_its_reason(backend: Make, tables: Tables, told: Told) -> None:
    parties = {**tables, "river": broken(tables["river"], y=[np.nan] * 25)}
    run = study().run(backend(parties))
    assert run.status == "finished"
    refused = [event.body for event in run.events if event.kind == "refused"]
    assert {body["party"] for body in refused} == {"river"}
    assert {body["work"] for body in refused} == {"train", "evaluate"}
    reason = told("the target 'y' is missing in row", UNUSABLE)
    assert all(reason in body["reason"] for body in refused)
    without = study().run(hs.Local({n: t for n, t in tables.items() if n != "river"}))
    assert not np.array_equal(run.parameters, without.parameters)  # its columns were counted
    for event in run.events:
        if event.kind == "arrived" and event.body["work"] == "train":
            assert event.body["counted"] == ["harbour", "north"]


def test_a_party_whose_sums_overflow_is_left_out_and_poisons_nobody(backend: Make, tables: Tables, told: Told) -> None:
    parties = {**tables, "river": broken(tables["river"], a=[1.5e308] * 25)}
    run = study().run(backend(parties))
    assert run.status == "finished"
    assert np.isfinite(run.parameters).all()
    reasons = [event.body["reason"] for event in run.events if event.kind == "refused"]
    overflow = told("field 'total': there is an infinity in it", "its 'total' is not what was declared")
    assert any(overflow in reason for reason in reasons)


def test_below_the_minimum_a_run_fails_and_names_every_party_and_reason(
    backend: Make, tables: Tables, told: Told
) -> None:
    parties = {**tables}
    for name in ("north", "river"):
        parties[name] = broken(tables[name], y=[7.0] * tables[name].rows)
    with pytest.raises(RunError) as caught:
        study().run(backend(parties))
    text = str(caught.value)
    assert "round 1: 1 of 3 contributions could be counted, and the study needs 2" in text
    reason = told("the target 'y' is neither 0 nor 1 in row 1", UNUSABLE)
    assert f"north: {reason}" in text
    assert f"river: {reason}" in text
    assert "harbour" not in text


def test_a_run_that_loses_all_parties_says_so(backend: Make, tables: Tables) -> None:
    parties = {n: broken(t, y=[7.0] * t.rows) for n, t in tables.items()}
    with pytest.raises(RunError, match="0 of 3 contributions could be counted"):
        study().run(backend(parties))


def test_a_round_in_which_nothing_moves_is_a_round(backend: Make) -> None:
    table = hs.Table.of({"a": [0.0] * 8, "y": [0.0, 1.0] * 4})
    federation = study(method=hs.FedSGD(), evaluation=hs.Evaluate(holdout=0), rounds=2)
    run = federation.run(backend({"one": table, "two": table}))
    assert run.parameters.tolist() == [0.0, 0.0]
    assert run.status == "finished"


def test_one_party_alone_is_no_federation(backend: Make, tables: Tables) -> None:
    with pytest.raises(StudyError, match=r"needs 2(.|\n)*north|north(.|\n)*needs 2"):
        study().run(backend({"north": tables["north"]}))


def test_a_party_without_the_target_is_named_with_its_columns(backend: Make, tables: Tables) -> None:
    parties = {**tables, "river": tables["river"].drop("y")}
    with pytest.raises(DataError) as caught:
        study().run(backend(parties))
    assert "party 'river': the target column 'y' is missing; it has a, b" in str(caught.value)


def test_it_runs_inside_a_running_event_loop(backend: Make, tables: Tables) -> None:
    async def notebook() -> hs.Run:
        return study(rounds=1).run(backend(tables))

    assert asyncio.run(notebook()).status == "finished"


def test_a_stop_rule_ends_it_early_and_says_why(backend: Make, tables: Tables) -> None:
    run = study(rounds=50, stop=hs.Stop(metric="auc", target=0.55)).run(backend(tables))
    assert run.reason.startswith("auc reached ")
    assert run.reason.endswith("the target is 0.55")
    assert len(run.metrics()) < 50


def test_its_errors_are_of_the_one_tree(backend: Make) -> None:
    with pytest.raises(HansaError, match="needs 2"):
        study().run(backend({}))
