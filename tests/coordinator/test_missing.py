"""A run that waits for a party that is not there says so, once, and says when it is back."""

from __future__ import annotations

from typing import Any

import pytest

import hansa as hs
from hansa.coordinator.events import (
    Connected,
    DeadlinePassed,
    Delivered,
    Disconnected,
    Effects,
    Joined,
    MachineEvent,
    Offered,
    Removed,
    Submitted,
)
from hansa.coordinator.machine import Machine
from hansa.data.table import ColumnSchema
from hansa.database import Put
from hansa.errors import StudyError

COLUMNS = (ColumnSchema("x", "number"), ColumnSchema("y", "number"))
OFFER = Offered("tumours", 9, COLUMNS, ("linear-regression",))


def events(effects: Effects) -> list[tuple[str, Any]]:
    """Those of presence: kind and body."""
    rows = [c.values for c in effects.changes if isinstance(c, Put) and c.table == "event"]
    kinds = {"waiting", "returned", "restarted"}
    return [(row["kind"], row["body"]) for row in rows if row["kind"] in kinds]


class Watched:
    """A machine with parties a, b and c, and a run that is open among them."""

    def __init__(self) -> None:
        self.machine = Machine()
        for name in "abc":
            self.feed(Joined(name, "1", "later"))
            self.feed(Connected(name, (OFFER,)))
        federation = hs.Federation(
            name="tumours",
            task=hs.LinearRegression(target="y"),
            method=hs.FedAvg(local=hs.SGD(lr=0.1)),
            rounds=1,
            cohort=hs.All(minimum=2, deadline=30.0),
        )
        self.feed(Submitted("run", federation))

    def feed(self, event: MachineEvent) -> list[tuple[str, Any]]:
        return events(self.machine.handle(event))

    def about(self, party: str) -> dict[str, Any]:
        ask = self.machine.runs["run"].ask
        assert ask is not None
        return {"party": party, "round": ask.round, "work": ask.work}


def test_a_party_that_leaves_an_open_ask_is_reported_with_the_deadline() -> None:
    watched = Watched()
    expected = {**watched.about("b"), "seconds": 30.0}
    assert watched.feed(Disconnected("b")) == [("waiting", expected)]


def test_a_link_that_flaps_is_reported_once_each_way_in_an_exchange() -> None:
    watched = Watched()
    told = []
    for _ in range(3):
        told += watched.feed(Disconnected("b")) + watched.feed(Connected("b", (OFFER,)))
    assert [kind for kind, _ in told] == ["waiting", "returned"]
    assert told[1][1] == watched.about("b")


def test_a_party_that_has_answered_may_leave_without_a_word() -> None:
    watched = Watched()
    watched.feed(Delivered((), "b", "run", 0, 1, 1.0, "d", b"x"))
    assert watched.feed(Disconnected("b")) == []
    assert watched.feed(Connected("b", (OFFER,))) == []


def test_a_party_of_no_open_ask_may_leave_without_a_word() -> None:
    watched = Watched()
    watched.feed(Joined("d", "1", "later"))
    assert watched.feed(Disconnected("d")) == []
    assert watched.feed(Disconnected("nobody")) == []


def test_an_ask_that_is_opened_to_a_party_that_is_away_says_so() -> None:
    watched = Watched()
    live = watched.machine.runs["run"]
    watched.feed(Disconnected("b"))
    watched.feed(DeadlinePassed("run", 0, 1))
    assert "run" not in watched.machine.runs  # nobody answered
    reopened = Effects()
    watched.machine.runs["run"] = live
    watched.machine._open(reopened, live)
    assert events(reopened) == [("waiting", {**watched.about("b"), "seconds": 30.0})]


def test_after_a_restart_those_who_are_not_back_yet_are_reported() -> None:
    watched = Watched()
    watched.feed(Delivered((), "a", "run", 0, 1, 1.0, "d", b"x"))
    for guest in watched.machine.guests.values():
        guest.listening = False
    restarted = Machine(watched.machine.guests, watched.machine.runs)
    told = events(restarted.restart())
    assert [(kind, body.get("party")) for kind, body in told] == [
        ("restarted", None),
        ("waiting", "b"),
        ("waiting", "c"),
    ]


def test_a_party_whose_name_is_mistyped_is_guessed() -> None:
    machine = Machine()
    machine.handle(Joined("bremen", "1", "later"))
    with pytest.raises(StudyError) as caught:
        machine.handle(Removed("bremem", ""))
    assert caught.value.remedy == "Did you mean 'bremen'?"
    with pytest.raises(StudyError) as caught:
        machine.handle(Removed("上海", ""))
    assert caught.value.remedy == "`hansa party list` names them"
