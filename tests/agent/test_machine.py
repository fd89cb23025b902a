"""The agent's machine by itself; with a coordinator it is driven in tests/coordinator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.agent import machine as machine_module
from hansa.agent.machine import OVER, Asked, CouldNot, Held, Latest, Machine, Settled, Worked
from hansa.contribution import Ask, Values
from hansa.database import Drop, Put
from hansa.errors import ConsentError

BODY, MEMORY = b"body", b"memory"


def asked(version: int = 0, attempt: int = 1) -> Asked:
    return Asked("run", Ask("train", version, 1, Values(), ()), attempt, "hash")


def worked(version: int = 0, attempt: int = 1) -> Worked:
    return Worked(asked(version, attempt), 3.0, BODY, MEMORY)


def test_an_ask_is_worked_on_once_however_often_it_comes() -> None:
    machine = Machine()
    assert machine.handle(asked()).work == [asked()]
    assert machine.handle(asked()).work == []
    assert machine.handle(asked(attempt=2)).work == [asked(attempt=2)]


def test_an_answer_is_a_row_before_it_is_sent_and_is_sent_again_as_it_was() -> None:
    machine = Machine()
    machine.handle(asked())
    effects = machine.handle(worked())
    put, latest = effects.changes
    assert isinstance(put, Put)
    revived = Machine([put.values], [], [latest.values])
    assert revived.pending == [("run", 0)]
    assert revived.handle(asked()).send == effects.send == [Held(**put.values)]
    assert revived.handle(asked()).work == []


def came_back(run: str, federation: str = "hash") -> Asked:
    return replace(asked(7), run=run, federation=federation)


def test_what_it_remembers_goes_on_with_a_run_from_a_backup_if_the_coordinator_forgot_nothing_of_it() -> None:
    machine = Machine([], [{"run": "run", "body": MEMORY}], [vars(Latest("run", "hash", 4, "digest"))])
    assert machine.memory(asked()) == MEMORY
    assert machine.memory(came_back("run~5-0a1b2c")) == MEMORY
    assert machine.memory(came_back("run~5-0a1b2c~7-0a1b2c")) == MEMORY
    assert machine.memory(came_back("run~4-0a1b2c")) == b""
    assert machine.memory(came_back("run~5-0a1b2c~4-0a1b2c")) == MEMORY  # it worked on none of those
    assert machine.memory(came_back("run~5-0a1b2c", "another study")) == b""
    assert machine.memory(came_back("run~5")) == machine.memory(came_back("other~5-0a1b2c")) == b""
    machine.memories["run~5-0a1b2c"] = b"newer"
    assert machine.memory(came_back("run~5-0a1b2c")) == machine.memory(came_back("run~5-0a1b2c~9-ffffff")) == b"newer"


def test_a_new_attempt_is_worked_on_anew() -> None:
    machine = Machine()
    machine.handle(asked())
    machine.handle(worked())
    effects = machine.handle(asked(attempt=2))
    assert (effects.work, effects.send) == ([asked(attempt=2)], [])


def test_an_answer_that_comes_too_late_is_neither_kept_nor_sent() -> None:
    machine = Machine()
    machine.handle(asked())
    machine.handle(Settled("run", 0, False))
    effects = machine.handle(worked())
    assert (effects.changes, effects.send, machine.pending) == ([], [], [])


@pytest.mark.parametrize("late", [True, False])
def test_work_that_was_charged_is_written_also_where_nothing_is_sent(late: bool) -> None:
    machine = Machine()
    machine.handle(asked())
    if late:
        machine.handle(Settled("run", 0, False))
    else:  # another ask under its number was answered in the meantime
        machine.latest["run"] = Latest("run", "hash", 1, "")
    effects = machine.handle(replace(worked(), charge={"number": 1, "run": "run"}))
    assert (effects.changes, effects.send) == ([Put("charge", {"number": 1, "run": "run"})], [])


def test_a_run_that_failed_and_goes_on_is_answered_again() -> None:
    machine = Machine()
    machine.handle(asked())
    machine.handle(worked())
    machine.handle(Settled("run", 0, False))
    assert machine.handle(asked(attempt=2)).work == [asked(attempt=2)]
    assert machine.handle(worked(attempt=2)).send != []


def test_what_was_counted_is_not_worked_on_again_and_what_failed_is() -> None:
    machine = Machine()
    machine.handle(asked(version=3))
    machine.handle(worked(version=3))
    [row] = [change for change in machine.handle(Settled("run", 3, True)).changes if change.table == "latest"]
    for told in (machine, Machine(latest=[row.values])):  # a restart forgets nothing that would cost again
        for version, reason in ((0, "another ask than before"), (3, "was counted already")):
            effects = told.handle(asked(version=version, attempt=2))
            assert (effects.work, effects.changes) == ([], [])
            assert reason in effects.excuse[0].reason
        assert told.handle(asked(version=4)).work == [asked(version=4)]
    machine.handle(Settled("run", 4, False))
    assert machine.handle(asked(version=4, attempt=2)).work == [asked(version=4, attempt=2)]
    assert machine.over == {"run": 3}


def test_a_coordinator_that_invents_runs_fills_nothing_and_frees_no_answer_to_be_given_again() -> None:
    machine = Machine()
    machine.handle(asked())
    machine.handle(worked())
    machine.handle(Settled("run", 0, True))
    for number in range(3 * OVER):
        assert machine.handle(Settled(f"run {number}", number, True)).changes == []
    for version in range(3 * OVER):  # nor does one that invents numbers of a run
        assert machine.handle(Settled("run", version, True)).changes == []
    assert len(machine.over) == OVER
    assert len(machine.latest) == 1
    effects = machine.handle(asked(attempt=2))
    assert (effects.work, len(effects.excuse)) == ([], 1)


def test_an_ask_is_known_to_be_over_while_other_runs_end() -> None:
    machine = Machine()
    machine.handle(asked())
    machine.handle(Settled("run", 0, False))
    for number in range(OVER - 1):
        machine.handle(Settled(f"run {number}", 0, False))
    assert machine.done(asked())
    machine.handle(Settled("run", 0, False))  # said again: not the oldest any more
    machine.handle(Settled("another", 0, False))
    assert machine.done(asked())


def test_a_number_stands_for_one_ask_of_one_study() -> None:
    machine = Machine()
    machine.handle(asked(version=3))
    effects = machine.handle(worked(version=3))
    [put] = [change for change in effects.changes if change.table == "latest"]
    revived = Machine([], [], [put.values])
    other = Values({"parameters": np.ones(3)})
    for changed in (
        replace(asked(version=3, attempt=2), ask=replace(asked(version=3).ask, send=other)),
        replace(asked(version=3, attempt=2), federation="another"),
        replace(asked(version=4), federation="another"),
        asked(version=2),
    ):
        for known in (machine, revived):
            effects = known.handle(changed)
            assert (effects.work, effects.send) == ([], [])
            assert "another ask than before" in effects.excuse[0].reason
    assert revived.handle(asked(version=4)).work == [asked(version=4)]


def test_after_an_excuse_the_same_ask_is_tried_again() -> None:
    machine = Machine()
    machine.handle(asked())
    effects = machine.handle(CouldNot(asked(), "no light"))
    assert effects.excuse == [CouldNot(asked(), "no light")]
    assert machine.handle(asked()).work == [asked()]


@pytest.mark.parametrize("counted", [True, False])
def test_memory_is_kept_only_if_the_answer_was_counted(counted: bool) -> None:
    machine = Machine()
    machine.handle(asked())
    machine.handle(worked())
    effects = machine.handle(Settled("run", 0, counted))
    assert machine.memories == ({"run": MEMORY} if counted else {})
    assert Drop("answer", {"run": "run", "version": 0}) in effects.changes
    kept = [change for change in effects.changes if change.table == "memory"]
    assert kept == ([Put("memory", {"run": "run", "body": MEMORY})] if counted else [])
    assert machine.handle(Settled("run", 0, counted)).changes == []
    assert machine.pending == []


def test_the_memories_of_runs_that_counted_it_last_are_kept_and_none_is_silently_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine_module, "MEMORIES", 3)
    machine, rows = Machine(), dict[str, Any]()
    for version, run in enumerate(["a", "b", "c", "a", "d", "e"]):
        one = replace(asked(version), run=run)
        machine.handle(one)
        machine.handle(replace(worked(), asked=one, memory=run.encode()))
        for change in machine.handle(Settled(run, version, True)).changes:
            if isinstance(change, Put) and change.table == "memory":
                rows[change.values["run"]] = change.values["body"]
    assert rows == machine.memories == {"a": b"a", "b": b"", "c": b"", "d": b"d", "e": b"e"}
    for told in (machine, Machine(memories=[{"run": run, "body": body} for run, body in rows.items()])):
        assert told.memory(replace(asked(9), run="a")) == b"a"
        assert told.memory(replace(asked(9), run="new")) == b""
        for run in ("b", "b~5-0a1b2c"):
            with pytest.raises(ConsentError, match="has forgotten what it remembered of this run"):
                told.memory(replace(asked(9), run=run))


EVENTS = st.one_of(
    st.builds(asked, st.integers(0, 2), st.integers(1, 2)),
    st.builds(worked, st.integers(0, 2), st.integers(1, 2)),
    st.builds(lambda v: Settled("run", v, True), st.integers(0, 2)),
    st.builds(lambda v: Settled("run", v, False), st.integers(0, 2)),
    st.builds(lambda v: CouldNot(asked(v), "no"), st.integers(0, 2)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, max_size=30))
def test_its_rows_are_the_whole_of_what_it_knows(events: list[Any]) -> None:
    machine = Machine()
    answers: dict[tuple[str, int], dict[str, Any]] = {}
    memories: dict[str, dict[str, Any]] = {}
    latest: dict[str, dict[str, Any]] = {}
    for event in events:
        effects = machine.handle(event)
        for change in effects.changes:
            if isinstance(change, Drop):
                answers.pop((change.values["run"], change.values["version"]), None)
            elif change.table == "answer":
                answers[change.values["run"], change.values["version"]] = dict(change.values)
            elif change.table == "latest":
                latest[change.values["run"]] = dict(change.values)
            else:
                memories[change.values["run"]] = dict(change.values)
        revived = Machine(answers.values(), memories.values(), latest.values())
        assert revived.held == machine.held
        assert revived.latest == machine.latest
        assert revived.memories == machine.memories
        for held in effects.send:
            assert answers[held.run, held.version] == vars(held)
