"""Bugs to be planted: each breaks one promise, in the way in which somebody once broke it somewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import pytest
from tests.faults.stores import Disk, Simulated, SimulatedCoordinatorStore

from hansa import tensors
from hansa.agent import machine as agent
from hansa.agent.desk import Desk
from hansa.coordinator import events as ev
from hansa.coordinator.engine import Engine
from hansa.coordinator.machine import Machine
from hansa.database import Put

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: dict[str, Plant] = {}


def planted(plant: Plant) -> Plant:
    PLANTS[plant.__name__.replace("_", " ")] = plant
    return plant


def dropped(patch: pytest.MonkeyPatch, store: str, which: Callable[[Put], bool]) -> None:
    """Rows never reach the transaction."""
    owner: Any = {"coordinator": Machine, "agent": agent.Machine}[store]
    handle = owner.handle

    def handled(self: Any, event: Any) -> Any:
        effects = handle(self, event)
        effects.changes[:] = [c for c in effects.changes if not (isinstance(c, Put) and which(c))]
        return effects

    patch.setattr(owner, "handle", handled)


@planted
def a_lost_answer_row(patch: pytest.MonkeyPatch) -> None:
    dropped(patch, "coordinator", lambda change: change.table == "answer" and bool(change.values["taken"]))


@planted
def a_lost_charge_row(patch: pytest.MonkeyPatch) -> None:
    dropped(patch, "agent", lambda change: change.table == "charge")


@planted
def a_lost_event(patch: pytest.MonkeyPatch) -> None:
    dropped(patch, "coordinator", lambda change: change.table == "event" and change.values["kind"] == "refused")


@planted
def a_lost_notice(patch: pytest.MonkeyPatch) -> None:
    """Who comes back does not hear what became of its answers."""
    connected = Machine._connected

    def silent(self: Machine, effects: ev.Effects, event: ev.Connected) -> None:
        connected(self, effects, event)
        effects.notices[:] = [one for one in effects.notices if not isinstance(one[1], ev.SettledNotice)]

    patch.setattr(Machine, "_connected", silent)


@planted
def a_double_count(patch: pytest.MonkeyPatch) -> None:
    """A repeated delivery is added again."""
    delivered = Machine._delivered

    def twice(self: Machine, effects: ev.Effects, event: ev.Delivered) -> None:
        live = self.runs.get(event.run)
        earlier = live.answers.get(event.party) if live else None
        delivered(self, effects, event)
        if earlier is not None and earlier.taken and earlier.digest == event.digest:
            earlier.weight += event.weight

    patch.setattr(Machine, "_delivered", twice)


@planted
def an_acknowledgement_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    """The store says that it has committed, and syncs with the next commit."""
    apply, sync = Simulated.apply, Disk.sync

    def late(self: Simulated, changes: Iterable[Any], **more: Any) -> None:
        sync(self.disk)
        apply(self, changes, **more)

    patch.setattr(Simulated, "apply", late)
    patch.setattr(Disk, "sync", lambda self: None)


@planted
def an_acknowledgement_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    carry_out = Engine._carry_out

    async def early(self: Engine, effects: ev.Effects, done: Iterable[object]) -> None:
        for ticket, taken, reason in effects.receipts:
            self._answer(ticket, (taken, reason))
        effects.receipts.clear()
        await carry_out(self, effects, done)

    patch.setattr(Engine, "_carry_out", early)


@planted
def settled_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    commit = Engine._commit

    def late(self: Engine, effects: ev.Effects) -> None:
        for party, notice in effects.notices:
            self._tell(party, notice)
        effects.notices.clear()
        commit(self, effects)

    patch.setattr(Engine, "_commit", late)


@planted
def noise_redrawn_on_retransmission(patch: pytest.MonkeyPatch) -> None:
    """What was asked for again is worked out again, and the work draws its noise as it comes."""
    asked, work, drawn = agent.Machine._asked, Desk.work, count()

    def again(self: agent.Machine, effects: agent.Effects, event: agent.Asked) -> None:
        self.held.pop((event.run, event.ask.version), None)
        asked(self, effects, event)

    def noisy(self: Desk, *given: Any) -> agent.Worked:
        worked = work(self, *given)
        if worked.sitting is None:
            values = tensors.read(worked.body)
            name = max(values)
            values[name] = values[name] + next(drawn) * 1e-9
            object.__setattr__(worked, "body", tensors.write(values))
        return worked

    patch.setattr(agent.Machine, "_asked", again)
    patch.setattr(Desk, "work", noisy)


@planted
def memory_kept_before_it_is_counted(patch: pytest.MonkeyPatch) -> None:
    settled = agent.Machine._settled
    patch.setattr(agent.Machine, "_settled", lambda self, effects, key, counted: settled(self, effects, key, True))


@planted
def a_seat_that_is_not_durable(patch: pytest.MonkeyPatch) -> None:
    """A party that comes back takes its seat in a secure sum anew, with other secrets."""
    dropped(patch, "agent", lambda change: change.table == "seat")


@planted
def a_roster_that_is_not_durable(patch: pytest.MonkeyPatch) -> None:
    """A party joins, and a coordinator that comes back does not know of it."""
    dropped(patch, "coordinator", lambda change: change.table == "run" and change.values.keys() == {"id", "setup"})


@planted
def a_fence_that_no_commit_looks_at(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that was replaced while it stood still goes on writing."""
    patch.setattr(SimulatedCoordinatorStore, "_fence", lambda self, connection: None)
