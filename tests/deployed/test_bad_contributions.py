"""A party that sends what was not declared is refused with a reason; the round goes on without it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import tensors
from hansa.aggregation import clip
from hansa.errors import ContributionError, UnreachableError
from hansa.wire import messages as m
from hansa.wire.rpcs import UPLOAD

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""
Puppets = Callable[..., Any]

MALLORY = "mallory"
UPDATE = np.array([0.1, 0.2, 0.3])


def head(work: m.Work, body: bytes, **changes: Any) -> m.Head:
    facts: dict[str, Any] = {
        "run": work.run,
        "version": work.version,
        "attempt": work.attempt,
        "weight": 3.0,
        "size": len(body),
        "digest": tensors.digest(body),
        "data": body,
        **changes,
    }
    return m.Head(**facts)


def one(update: object = UPDATE, **others: object) -> bytes:
    arrays = {"update": update, **others}
    return tensors.write({k: np.asarray(v) for k, v in arrays.items() if v is not None})


def chunked(work: m.Work, body: bytes, *pieces: bytes) -> list[m.UploadPart | bytes]:
    return [m.UploadPart(head=head(work, body, data=b"")), *pieces]


Craft = Callable[[m.Work], list[m.UploadPart | bytes]]


def whole(body: bytes, **changes: Any) -> Craft:
    return lambda work: [m.UploadPart(head=head(work, body, **changes))]


BAD: Mapping[str, tuple[Craft, str]] = {
    "another shape": (whole(one(np.zeros(4))), "shape [4] where [3] was declared"),
    "a broadcastable shape": (whole(one(np.zeros(1))), "shape [1] where [3] was declared"),
    "a scalar": (whole(one(np.zeros(()))), "shape [] where [3] was declared"),
    "another dtype": (whole(one(np.zeros(3, np.float32))), "dtype float32 where float64"),
    "NaN": (whole(one([0.0, np.nan, 0.0])), "there is NaN in it"),
    "an infinity": (whole(one([0.0, np.inf, 0.0])), "there is an infinity in it"),
    "a weight of zero": (whole(one(), weight=0.0), "the weight is 0.0"),
    "a negative weight": (whole(one(), weight=-1.0), "the weight is -1.0"),
    "a weight that is no number": (whole(one(), weight=float("nan")), "the weight is nan"),
    "an absurd weight": (whole(one(), weight=1e15), "is absurd"),
    "a missing field": (whole(one(None, other=UPDATE)), "not declared"),
    "an extra field": (whole(one(extra=UPDATE)), "field 'extra': this field was not declared"),
    "nothing at all": (whole(b""), ""),
    "garbage": (whole(b"\xff" * 200), ""),
    "another digest": (whole(one(), digest=b"0" * 32), "its digest differs"),
    "too large": (whole(b"", size=10_000_000_000), "10000000000 bytes where at most"),
    "more than the head says": (whole(one(), size=10), ""),
    "a gap": (lambda w: chunked(w, one(), one()[:2], one()[7:], bytes(5)), "digest differs"),
    "a chunk twice": (lambda w: chunked(w, one(), one()[:8], one()[:8], one()[8:]), "more arrives than"),
    "more chunks than declared": (lambda w: chunked(w, one(), one() + b"more"), "more arrives than"),
    "chunks of another body": (lambda w: chunked(w, one(), one(-UPDATE)), "digest differs"),
    "an empty chunk": (lambda w: chunked(w, one(), b""), "a chunk of 0 bytes is none"),
}


async def test_what_was_not_declared_is_refused_and_the_round_goes_on(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    await town.settle(harvests)
    federation = study(
        rounds=len(BAD),
        aggregation=clip(1.0),
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0),
    )
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        for craft, _ in BAD.values():
            reply = await party.upload(*craft(await party.work()))
            assert reply is not None
            assert not reply.receipt.accepted
        ended = await town.watch(run)
    assert ended.status == "finished"
    refused = [event.body for event in ended.events if event.kind == "refused"]
    assert {body["party"] for body in refused} == {MALLORY}
    for (name, (_, reason)), body in zip(BAD.items(), refused, strict=True):
        assert reason in body["reason"], name
        assert body["reason"], name
    for event in ended.events:
        if event.kind == "arrived":
            assert event.body["counted"] == sorted(harvests)
    store = town.running.driver.store
    assert not [path for path in store._blobs.rglob("*") if path.is_file()]
    assert not any(row["taken"] for row in await town.rows("answer", party=MALLORY))


async def test_an_answer_to_another_exchange_is_refused_and_disturbs_nothing(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    await town.settle(harvests)
    held, desk = threading.Event(), town.agents["bremen"]._desk
    work_of = desk.work
    desk.work = lambda *what: (held.wait(20), work_of(*what))[1]
    federation = study(rounds=2, preprocessing=hs.Moments(standardise=False), evaluation=hs.Evaluate(every=0))
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        work = await party.work()
        for changes, reason in (
            ({"version": 7}, "stale: an answer to exchange 7.1, and the run is at 0.1"),
            ({"attempt": 2}, "stale: an answer to exchange 0.2"),
            ({"run": "another"}, "no run 'another' waits for answers"),
            ({"version": 7, "size": 1 << 40, "data": b""}, "stale"),
        ):
            reply = await party.upload(m.UploadPart(head=head(work, one(), **changes)))
            assert reply is not None
            assert reason in reply.receipt.reason
        good = m.UploadPart(head=head(work, one()))
        for _ in range(2):  # as if the receipt had been lost
            reply = await party.upload(good)
            assert reply is not None
            assert reply.receipt.accepted
        held.set()  # until here the round stayed open
        second = await party.work()
        again = m.UploadPart(head=head(work, one()))
        reply = await party.upload(again)
        assert reply is not None
        assert "stale: an answer to exchange 0.1, and the run is at 1.1" in reply.receipt.reason
        failure = m.Failure(run=run, version=second.version, attempt=1, reason="no\x00 light")
        reply = await party.upload(m.UploadPart(failure=failure))
        ended = await town.watch(run)
    [refused] = [event.body for event in ended.events if event.kind == "refused"]
    assert refused["reason"] == "no  light"


async def test_an_answer_that_would_count_more_than_others_is_refused_where_all_count_the_same(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    await town.settle(harvests)
    federation = study(
        method=hs.FedSGD(weights="equal"),
        rounds=1,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0),
    )
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        work = await party.work()
        field = json.loads(work.ask)["fields"][0]["name"]
        body = tensors.write({field: UPDATE})
        reply = await party.upload(m.UploadPart(head=head(work, body, weight=1000.0)))
        assert reply is not None
        assert "the weight is 1000 where all count the same" in reply.receipt.reason
        ended = await town.watch(run)
    assert [e.body["party"] for e in ended.events if e.kind == "refused"] == [MALLORY]


async def test_who_ignores_the_clip_or_claims_more_rows_than_it_offers_is_refused(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    await town.settle(harvests)
    federation = study(
        rounds=2,
        aggregation=hs.aggregation.clip(0.5),
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0),
    )
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        above = 2 * harvests["bremen"].rows  # as the puppet tells the exact number
        for update, weight, reason in (
            (np.full(3, 1.0), 3.0, "the norm is 1.73205 where at most 0.5 is allowed"),
            (np.full(3, 0.1), float(above), f"the weight is {above}, and it offers fewer than {above} rows"),
        ):
            work = await party.work()
            reply = await party.upload(m.UploadPart(head=head(work, one(update), weight=weight)))
            assert reply is not None
            assert reason in reply.receipt.reason
        ended = await town.watch(run)
    assert [e.body["party"] for e in ended.events if e.kind == "refused"] == [MALLORY, MALLORY]


async def test_values_that_are_finite_and_would_overflow_the_sum_poison_nobody(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    await town.settle(harvests)
    federation = study(rounds=1, preprocessing=hs.Moments(standardise=False), evaluation=hs.Evaluate(every=0))
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        work = await party.work()
        body = one(np.full(3, 1e308))
        await party.upload(m.UploadPart(head=head(work, body, weight=20.0)))
        ended = await town.watch(run)
    assert np.isfinite(ended.parameters).all()
    [refused] = [event.body for event in ended.events if event.kind == "refused"]
    assert refused["party"] == MALLORY
    assert refused["reason"] == "field 'update': the value 1e+308 is absurd"


async def test_an_upload_that_is_none_ends_its_call_only(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    await town.settle(harvests)
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        with pytest.raises(ContributionError, match="begins with a head or a failure"):
            await party.upload(m.UploadPart())
        federation = study(
            rounds=1,
            cohort=hs.All(deadline=2),
            preprocessing=hs.Moments(standardise=False),
            evaluation=hs.Evaluate(every=0),
        )
        assert (await town.run(federation)).status == "finished"


async def test_a_broken_off_upload_goes_on_where_it_broke(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    await town.settle(harvests)
    federation = study(rounds=1, preprocessing=hs.Moments(standardise=False), evaluation=hs.Evaluate(every=0))
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        work = await party.work()
        body = one()
        with pytest.raises(UnreachableError, match="it may be resumed"):
            await party.upload(*chunked(work, body, body[:40]))
        async with party.client.bidi(UPLOAD) as call:
            await call.send(chunked(work, body)[0])
            reply = await call.receive()
            assert reply.resume.offset == 40
            await call.send(body[40:])
            reply = await call.receive()
            assert reply.receipt.accepted
        ended = await town.watch(run)
    [arrived] = [event.body for event in ended.events if event.kind == "arrived"]
    assert MALLORY in arrived["counted"]
