"""Rounds that do not wait, between agents and a coordinator: nobody is held up, and what comes late counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import tensors
from hansa.agent.machine import Asked, Worked
from hansa.coordinator import inbox
from hansa.wire import messages as m
from hansa.wire.rpcs import REMOVE, UPLOAD

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""
Puppets = Callable[..., Any]

SLOW, LAG = "bremen", 6
MALLORY = "mallory"


def slowed(town: Town) -> list[int]:
    """Let a party's training take until the run is some rounds further; the rounds in which it begins."""
    agent, begun = town.agents[SLOW], list[int]()
    original = agent._desk.work

    def work(asked: Asked, *given: Any) -> Worked:
        if asked.ask.work == "train":
            begun.append(asked.ask.round)
            runs = town.running.driver.machine.runs
            while (live := runs.get(asked.run)) and live.progress.round < asked.ask.round - 1 + LAG:
                time.sleep(0.002)
        return original(asked, *given)

    agent._desk.work = work
    return begun


def rounds(run: hs.Run) -> list[dict[str, Any]]:
    return [dict(event.body) for event in run.events if event.kind == "arrived" and event.body["work"] == "train"]


PARTS: dict[str, dict[str, Any]] = {
    "late": {"cohort": hs.All(goal=2, late=1000), "method": hs.methods.Scaffold(local=hs.SGD(lr=0.2, batch_size=8))},
    "fedbuff": {"method": hs.methods.FedBuff(local=hs.SGD(lr=0.2, batch_size=8), buffer=2, concurrency=3)},
}


@pytest.mark.parametrize("name", PARTS)
async def test_a_slow_party_holds_up_nobody_and_its_late_updates_count_with_their_lag(
    name: str, town: Town, harvests: Tables, study: Study
) -> None:
    await town.settle(harvests)
    begun = slowed(town)
    federation = study(rounds=20, evaluation=hs.Evaluate(every=10), **PARTS[name])
    ended = await town.run(federation)  # which would never end, if it waited
    arrived = rounds(ended)
    assert [len(body["counted"]) for body in arrived] == [2] * 20
    lags = [body["lags"] for body in arrived if body.get("lags")]
    assert len(lags) >= 2
    assert all(lag.get(SLOW, LAG) >= LAG for lag in lags)
    assert begun == sorted(set(begun))
    again = federation.run(hs.Local(harvests, replay=ended))
    assert again.parameters.tobytes() == ended.parameters.tobytes()
    await town.until(lambda: not town.agents[SLOW]._machine.pending)


async def test_who_is_never_among_the_first_works_on_the_newest_round_only(
    town: Town, harvests: Tables, study: Study
) -> None:
    await town.settle(harvests)
    begun = slowed(town)
    ended = await town.run(study(rounds=20, cohort=hs.All(goal=2), evaluation=hs.Evaluate(every=0)))
    counted = [body["counted"] for body in rounds(ended)]
    assert all(len(names) == 2 for names in counted)
    assert len(begun) <= 10  # those that were over before their turn came were never begun
    assert not [event for event in ended.events if event.kind == "refused"]


def parts(work: m.Work, size: int) -> tuple[m.UploadPart, list[bytes]]:
    """An upload in pieces."""
    body = tensors.write({"update": np.array([0.1, 0.2, 0.3])})
    where = {"run": work.run, "version": work.version, "attempt": work.attempt}
    head = m.Head(**where, weight=3.0, size=len(body), digest=tensors.digest(body))
    cuts = range(0, len(body), size)
    return m.UploadPart(head=head), [body[at : at + size] for at in cuts]


@pytest.fixture
def once(study: Study) -> hs.Federation:
    """One round of a second, in which everybody is waited for."""
    plain = {"preprocessing": hs.Moments(standardise=False), "evaluation": hs.Evaluate(every=0)}
    return study(rounds=1, cohort=hs.All(minimum=3, deadline=1.0), **plain)


@pytest.mark.parametrize("stalls", [False, True])
async def test_an_upload_that_makes_progress_at_the_deadline_is_waited_for_and_one_that_stalls_is_not(
    stalls: bool, once: hs.Federation, town: Town, harvests: Tables, puppet: Puppets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "STALL", 0.6)
    await town.settle(harvests)
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(once)
        head, pieces = parts(await party.work(), 16)
        started = time.monotonic()
        async with party.client.bidi(UPLOAD) as call:
            await call.send(head)
            await call.receive()
            for piece in pieces[: 1 if stalls else None]:
                await call.send(piece)
                await asyncio.sleep(1.4 / len(pieces))
            reply = await asyncio.wait_for(call.receive(), 10)
        assert reply.receipt.accepted != stalls
        assert time.monotonic() - started < (1.9 if stalls else 6.0)
        [body] = rounds(await town.watch(run))
    assert (MALLORY in body["counted"]) != stalls
    assert body["excluded"] == ({MALLORY: "no answer within 1 s"} if stalls else {})


async def test_a_party_that_is_removed_in_the_middle_of_its_upload_is_cut_off_at_once(
    once: hs.Federation, town: Town, harvests: Tables, puppet: Puppets
) -> None:
    await town.settle(harvests)
    long = once.model_copy(update={"cohort": hs.All(minimum=3)})
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(long)
        head, pieces = parts(await party.work(), 16)
        async with party.client.bidi(UPLOAD) as call:
            await call.send(head)
            await call.receive()
            await call.send(pieces[0])
            await town.until(lambda: any(g.receiver.offset for g in town.running.inbox.open.values()))
            async with town.operator() as operator:
                await operator.unary(REMOVE, m.RemoveRequest(party=MALLORY, reason="moved away"))
            reply = await asyncio.wait_for(call.receive(), 5)
        assert not reply.receipt.accepted
        [body] = rounds(await town.watch(run))
    assert MALLORY not in body["counted"]
