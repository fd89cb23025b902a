"""What one party does or leaves undone costs the coordinator, the operator and the others nothing."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import tensors
from hansa.contribution import Ask, Values
from hansa.coordinator import hello as limits
from hansa.coordinator import inbox, service
from hansa.coordinator.events import WorkNotice
from hansa.coordinator.inbox import RESERVE
from hansa.coordinator.listener import ASKS
from hansa.coordinator.service import FEW
from hansa.errors import ContributionError, RunError, TrustError, UnreachableError
from hansa.wire import chunks
from hansa.wire import messages as m
from hansa.wire.rpcs import ATTEND, FETCH, PARTIES, PROTOCOL, UPLOAD

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""
Puppets = Callable[..., Any]
Dial = Callable[..., Any]

MALLORY = "mallory"


async def test_a_party_that_does_not_read_is_cut_off_and_may_come_back(
    town: Town, harvests: Tables, dial: Dial
) -> None:
    town_hall = town.running
    large = np.zeros(8_000)  # as much as comes with a notice
    async with dial(await town.join(MALLORY, harvests["bremen"])) as client:
        call = client._channel.unary_stream(ATTEND.path)(m.Hello(protocol=PROTOCOL).SerializeToString())
        await town.until(lambda: MALLORY in town.listening())
        for version in range(400):
            ask = Ask("train", version, version, Values({"parameters": large}), ())
            town_hall._tell(MALLORY, WorkNotice("run", ask, 1, "ab"))
            if MALLORY not in town_hall._listeners:
                break
            if version % 10 == 0:
                await asyncio.sleep(0.01)
        assert ASKS <= version < 2 * ASKS
        await town.until(lambda: MALLORY not in town.listening())
        call.cancel()
        again = client.stream(ATTEND, m.Hello(protocol=PROTOCOL))
        assert (await anext(again)).HasField("welcome")
        await town.until(lambda: MALLORY in town.listening())
        await again.aclose()


async def test_few_are_told_of_a_large_ask_at_once_until_they_come_for_it_or_do_not(
    town: Town, harvests: Tables, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, heard, clients = [f"p{i}" for i in range(FEW + 2)], list[tuple[int, str]](), dict[str, Any]()

    async def attend(name: str) -> None:
        async for notice in clients[name].stream(ATTEND, m.Hello(protocol=PROTOCOL)):
            heard.extend((work.version, name) for work in notice.work)

    def tell(version: int) -> None:
        heard.clear()
        ask = Ask("train", version, version, Values({"parameters": np.zeros(10_000)}), ())
        for name in names:
            town.running._tell(name, WorkNotice("run", ask, 1, "ab"))

    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            clients[name] = await stack.enter_async_context(dial(await town.join(name, harvests["bremen"])))
        listening = [asyncio.create_task(attend(name)) for name in names]
        await town.until(lambda: set(names) <= set(town.listening()))
        tell(1)  # and nobody comes
        await town.until(lambda: len(heard) == len(names))
        await town.until(lambda: not town.running._called)
        monkeypatch.setattr(service, "AT_ONCE", 60.0)
        tell(2)
        await town.until(lambda: len(heard) == FEW)
        await asyncio.sleep(0.2)
        assert len(heard) == FEW
        with pytest.raises(RunError):  # it comes, if for something else
            await anext(clients[heard[0][1]].stream(FETCH, m.FetchRequest(digest=b"another")))
        await town.until(lambda: len(heard) == FEW + 1)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
        for name in names:
            town.running._came(name)


def begun(work: m.Work, body: bytes) -> list[m.UploadPart]:
    """A large upload that stops in its middle."""
    head = m.Head(
        run=work.run,
        version=work.version,
        attempt=work.attempt,
        weight=3.0,
        size=len(body),
        digest=tensors.digest(body),
    )
    return [m.UploadPart(head=head), body[:40]]


BODY = tensors.write({"update": np.array([0.1, 0.2, 0.3])})


async def test_an_upload_that_outlives_its_exchange_is_stale_and_leaves_nothing(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    await town.settle(harvests)
    federation = study(
        rounds=1,
        cohort=hs.All(deadline=2.0),
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0),
    )
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        work = await party.work()
        async with party.client.bidi(UPLOAD) as call:
            for part in begun(work, BODY):
                await call.send(part)
            assert (await call.receive()).resume.offset == 0
            reply = await asyncio.wait_for(call.receive(), 10)
            assert not reply.receipt.accepted
            assert "waits for answers" in reply.receipt.reason or "stale" in reply.receipt.reason
        assert (await town.watch(run)).status == "finished"
    assert not town.running.inbox.open
    blobs = town.running.driver.store._blobs
    assert not [path for path in blobs.rglob("*") if path.is_file()]


async def test_an_upload_whose_folder_is_gone_is_sent_again_and_costs_nobody_the_round(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    await town.settle(harvests)
    federation = study(rounds=1, preprocessing=hs.Moments(standardise=False), evaluation=hs.Evaluate(every=0))
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        work = await party.work()
        first, part = begun(work, BODY)
        rest = BODY[40:]
        async with party.client.bidi(UPLOAD) as call:
            await call.send(first)
            await call.receive()
            shutil.rmtree(town.running.driver.store._blobs / work.run)
            await call.send(part)
            await call.send(rest)
            with pytest.raises(UnreachableError, match="cannot be kept now"):
                await call.receive()
        reply = await party.upload(first, part, rest)
        assert reply is not None
        assert reply.receipt.accepted
        ended = await town.watch(run)
    assert not [event for event in ended.events if event.kind == "refused"]


@pytest.mark.parametrize("declared", [1, len(BODY)])
async def test_an_answer_that_is_looked_at_is_cut_short_by_no_other_call(
    declared: int, town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    """It is mapped then: the program would end with a bus error, or count what is no longer there."""
    await town.settle(harvests)
    federation = study(rounds=1, preprocessing=hs.Moments(standardise=False), evaluation=hs.Evaluate(every=0))
    over, folder = threading.Event(), town.running.driver.store._blobs
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        work = await party.work()
        first, part = begun(work, BODY)
        inbox._LOOK.submit(over.wait, 20)  # at others' answers
        async with party.client.bidi(UPLOAD) as one, party.client.bidi(UPLOAD) as two:
            for sent in (first, part, BODY[40:]):
                await one.send(sent)
            assert (await one.receive()).resume.offset == 0
            await town.until(lambda: len([*folder.rglob("*.*.part")]) == 1)
            other = m.UploadPart()
            other.CopyFrom(first)
            other.head.size = declared
            await two.send(other)
            assert (await two.receive()).resume.offset == 0
            if declared > 1:
                await two.send(part)
            with pytest.raises(UnreachableError, match="broken off"):
                await one.receive()
            over.set()
        async with party.client.bidi(UPLOAD) as three:
            await three.send(first)
            offset = (await three.receive()).resume.offset
            assert offset in ((0,) if declared == 1 else (0, 40))  # what the second sent may have come
            await three.send(BODY[offset:])
            assert (await three.receive()).receipt.accepted
        ended = await town.watch(run)
    assert ended.status == "finished"
    assert not [event for event in ended.events if event.kind == "refused"]
    assert not [path for path in folder.rglob("*") if path.is_file()]


async def test_a_large_answer_that_does_not_begin_with_a_small_head_is_refused(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    """Many may wait, and memory holds what each began with."""
    await town.settle(harvests)
    federation = study(rounds=1, preprocessing=hs.Moments(standardise=False), evaluation=hs.Evaluate(every=0))
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        first, part = begun(await party.work(), BODY)
        half = m.UploadPart()
        half.CopyFrom(first)
        half.head.data = BODY[:40]
        for sent in (half, first.SerializeToString() + bytes([0xFA, 0x7F, 0xFF, 0xFF, 0x07]) + bytes((1 << 17) - 1)):
            with pytest.raises(ContributionError, match="all of an answer, or nothing"):
                await party.upload(sent)
        assert (await party.upload(first, part, BODY[40:])).receipt.accepted
        assert (await town.watch(run)).status == "finished"


async def test_an_ask_that_is_fetched_late_and_often_is_one_body(
    town: Town, harvests: Tables, study: Study, puppet: Puppets, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town.settle(harvests)
    late = {"cohort": hs.All(goal=2, late=3000), "preprocessing": hs.Moments(standardise=False)}
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(study(rounds=3000, evaluation=hs.Evaluate(every=0), **late))
        work, live = await party.work(), town.running.driver.machine.runs[run]
        await town.until(lambda: live.ask.version > work.version + 3)
        made, laid = list[int](), town.running.driver.store.laid
        monkeypatch.setattr(town.running.driver.store, "laid", lambda pieces: made.append(1) or laid(pieces))
        town.running.driver._bodies.clear()  # as after a restart
        for _ in range(5):
            fetched = [chunk async for chunk in party.client.stream(FETCH, m.FetchRequest(digest=work.digest))]
            assert tensors.digest(*fetched) == work.digest
        others = {version for _, version, name in town.running.driver._bodies if name == "ask"}
        assert work.version in others
        assert made.count(1) <= 1 + live.ask.version - work.version


async def test_what_a_party_asks_when_it_comes_costs_two_looks_into_the_database(
    town: Town, harvests: Tables, study: Study, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town.settle(harvests)
    run = await town.submit(study(rounds=1))
    await town.watch(run)
    pending = [m.Pending(run=f"run {i % 7}" if i % 2 else run, version=i) for i in range(limits.PENDING)]
    store, asked = town.running.driver.store, list[str]()
    rows = store.rows
    monkeypatch.setattr(store, "rows", lambda table, *a, **b: asked.append(table) or rows(table, *a, **b))
    async with dial(await town.join(MALLORY, harvests["bremen"])) as client:
        asked.clear()
        stream = client.stream(ATTEND, m.Hello(protocol=PROTOCOL, pending=pending))
        heard = dict[tuple[str, int], bool]()
        while len(heard) < len(pending):
            heard |= {(said.run, said.version): said.counted for said in (await anext(stream)).settled}
        assert not any(heard.values())
        assert asked == ["answer", "blob"]
        await stream.aclose()


async def test_a_party_that_was_counted_in_many_runs_hears_of_all_when_it_comes_back(
    town: Town, harvests: Tables, dial: Dial
) -> None:
    async with dial(await town.join(MALLORY, harvests["bremen"])) as client:
        counted = {f"20261122-030630-tumours-{i:06x}": 1 for i in range(40_000)}
        town.running.driver.machine.guests[MALLORY].counted = counted
        stream, heard = client.stream(ATTEND, m.Hello(protocol=PROTOCOL)), dict[str, int]()
        while len(heard) < len(counted):
            notice = await anext(stream)
            assert notice.ByteSize() <= 2 * chunks.CHUNK
            heard |= {said.run: said.version for said in notice.settled}
        assert heard == counted
        await stream.aclose()


async def test_large_uploads_take_turns_which_a_stalled_one_loses_and_small_ones_do_not_wait(
    town: Town, harvests: Tables, study: Study, puppet: Puppets, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = study(
        rounds=1, cohort=hs.All(minimum=2), preprocessing=hs.Moments(standardise=False), evaluation=hs.Evaluate(every=0)
    )
    monkeypatch.setattr("hansa.coordinator.inbox.TURN", 1.0)
    town.running.inbox._turns = asyncio.Semaphore(1)
    async with puppet(town, MALLORY, harvests["bremen"]) as slow, puppet(town, "eve", harvests["bremen"]) as other:
        run = await town.submit(federation)
        first, part = begun(await slow.work(), BODY)
        rest = BODY[40:]
        async with slow.client.bidi(UPLOAD) as stalled, other.client.bidi(UPLOAD) as waiting:
            await stalled.send(first)
            assert (await stalled.receive()).resume.offset == 0
            await stalled.send(part)
            await waiting.send(first)
            turn = asyncio.ensure_future(waiting.receive())
            stale = m.UploadPart(failure=m.Failure(run="no run", version=0, attempt=1, reason="it is busy"))
            assert not (await other.upload(stale)).receipt.accepted
            assert not turn.done()
            assert (await turn).resume.offset == 0
            for party in (waiting, stalled):
                if party is waiting:
                    await party.send(part)
                await party.send(rest)
                assert (await party.receive()).receipt.accepted
        assert (await town.watch(run)).status == "finished"


async def test_of_large_bodies_that_stand_still_only_so_many_are_under_way_until_they_are_silent_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"TURNS": 1, "TURN": 0.05, "MOST": 2, "SILENT": 1.0}.items():
        monkeypatch.setattr(inbox, name, value)
    turns, began, over = inbox.Inbox(None), list[int](), asyncio.Event()  # type: ignore[arg-type]  # no store is needed

    async def still(number: int) -> None:
        async with turns.turn():
            began.append(number)
            await over.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(still(number))
        await asyncio.sleep(0.5)
        assert began == [0, 1]  # the second when the first had lost its turn
        await asyncio.sleep(1.0)
        assert began == [0, 1, 2]
        over.set()
    async with asyncio.timeout(1), turns.turn(), turns.turn():  # nothing that was lost or given back twice is missing
        assert turns._places.locked()


async def test_a_party_that_fetches_much_at_once_and_does_not_read_holds_up_only_itself(
    town: Town, harvests: Tables, study: Study, puppet: Puppets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "TURN", 0.05)
    begun, split = list[int](), chunks.split

    def endless(_: tensors.Buffer, offset: int = 0) -> Iterator[bytes]:
        begun.append(offset)
        while True:
            yield bytes(chunks.CHUNK)

    await town.settle(harvests)
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        await town.submit(study(rounds=1, preprocessing=hs.Moments(standardise=False)))
        request = m.FetchRequest(digest=(await party.work()).digest)
        monkeypatch.setattr(chunks, "split", endless)
        fetch = party.client._channel.unary_stream(FETCH.path)
        calls = [fetch(request.SerializeToString()) for _ in range(inbox.OWN + 2)]
        await town.until(lambda: len(begun) == inbox.OWN)
        await asyncio.sleep(0.5)
        assert len(begun) == inbox.OWN
        async with town.running.inbox.turn():  # others come
            pass
        monkeypatch.setattr(chunks, "split", split)
        for call in calls:
            call.cancel()


async def test_a_party_that_sends_many_large_answers_at_once_has_one_of_them_on_the_disk(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    made = {"rounds": 1, "preprocessing": hs.Moments(standardise=False), "evaluation": hs.Evaluate(every=0)}
    await town.settle(harvests)
    async with puppet(town, MALLORY, harvests["bremen"]) as party, contextlib.AsyncExitStack() as stack:
        runs = [await town.submit(study(**made, seed=seed)) for seed in range(3)]
        works, calls = [await party.work() for _ in runs], list[Any]()
        for work in works:
            calls.append(await stack.enter_async_context(party.client.bidi(UPLOAD)))
            await calls[-1].send(begun(work, BODY)[0])
        replies = [asyncio.ensure_future(call.receive()) for call in calls]
        waiting = list(range(len(works)))
        while waiting:
            await asyncio.wait([replies[i] for i in waiting], timeout=5, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.1)
            (first,) = (i for i in waiting if replies[i].done())
            assert len(town.running.inbox.open) == 1
            assert len([*town.running.driver.store._blobs.rglob("*.part")]) == 1
            for part in (begun(works[first], BODY)[1], BODY[40:]):
                await calls[first].send(part)
            assert (await calls[first].receive()).receipt.accepted
            waiting.remove(first)
        for run in runs:
            assert (await town.watch(run)).status == "finished"


async def test_a_party_that_comes_back_does_not_wait_for_what_its_earlier_link_was_sending(
    town: Town, harvests: Tables, study: Study, puppet: Puppets
) -> None:
    made = {"rounds": 1, "preprocessing": hs.Moments(standardise=False), "evaluation": hs.Evaluate(every=0)}
    await town.settle(harvests)
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        runs = [await town.submit(study(**made, seed=seed)) for seed in range(2)]
        first, second = [await party.work() for _ in runs]
        async with party.client.bidi(UPLOAD) as half_open, party.client.bidi(UPLOAD) as call:
            for part in begun(first, BODY):
                await half_open.send(part)
            assert (await half_open.receive()).resume.offset == 0
            await call.send(begun(second, BODY)[0])
            reply = asyncio.ensure_future(call.receive())
            await asyncio.sleep(0.2)
            assert not reply.done()
            again = asyncio.ensure_future(party.listen(harvests["bremen"]))
            assert (await asyncio.wait_for(reply, 5)).resume.offset == 0
            await call.send(BODY)
            assert (await call.receive()).receipt.accepted
            with pytest.raises(UnreachableError, match="it may be resumed"):
                await half_open.receive()
        async with party.client.bidi(UPLOAD) as call:
            await call.send(begun(first, BODY)[0])
            assert (await call.receive()).resume.offset == 40
            await call.send(BODY[40:])
            assert (await call.receive()).receipt.accepted
        for run in runs:
            assert (await town.watch(run)).status == "finished"
        again.cancel()
        await asyncio.wait({again})


async def test_an_upload_for_which_the_disk_has_no_room_is_told_to_come_back_later(
    town: Town, harvests: Tables, study: Study, puppet: Puppets, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = study(rounds=1, preprocessing=hs.Moments(standardise=False), evaluation=hs.Evaluate(every=0))
    await town.settle(harvests)
    async with puppet(town, MALLORY, harvests["bremen"]) as party:
        run = await town.submit(federation)
        first, part = begun(await party.work(), BODY)
        rest = BODY[40:]
        full = shutil.disk_usage(".")._replace(free=RESERVE + len(BODY) - 1)
        with monkeypatch.context() as patched:
            patched.setattr("hansa.coordinator.inbox.shutil.disk_usage", lambda path: full)
            with pytest.raises(UnreachableError, match="cannot be kept now: No space left"):
                await party.upload(first)
        assert (await party.upload(first, part, rest)).receipt.accepted
        assert (await town.watch(run)).status == "finished"


def offer(dataset: str = "tumours", columns: int = 1, column: str = "age") -> m.Offer:
    listed = [m.Column(name=column, type="number")] * columns
    return m.Offer(dataset=dataset, rows=3, columns=listed, allow=["linear-regression"])


@pytest.mark.parametrize(
    ("offers", "why"),
    [
        ([offer()] * (limits.OFFERS + 1), "201 data sets"),
        ([offer(columns=10_001)] * 2, "20002 columns in all"),
        ([offer("x" * 201)], "201 characters"),
        ([offer(column="x" * 201)], "201 characters"),
        ([m.Offer(allow=["kind"] * 101)], "101 kinds of task"),
    ],
)
def test_a_hello_that_offers_too_much_is_refused(offers: list[m.Offer], why: str) -> None:
    with pytest.raises(TrustError, match=why):
        limits.connected(MALLORY, m.Hello(protocol=PROTOCOL, offers=offers))


def test_a_hello_asks_about_so_many_answers_at_most() -> None:
    pending = [m.Pending(run=f"run {i}", version=i) for i in range(2000)]
    event = limits.connected(MALLORY, m.Hello(protocol=PROTOCOL, pending=pending))
    assert [said.run for said in event.pending] == [f"run {i}" for i in range(limits.PENDING)]


def test_offered_names_move_no_terminal_and_keep_their_line_breaks() -> None:
    hello = m.Hello(protocol=PROTOCOL, offers=[offer("\x1b[2Jtum\x9bours", column="age\n(\x07years)")])
    (offered,) = limits.connected(MALLORY, hello).offers
    assert offered.dataset == "[2Jtumours"
    assert offered.columns[0].name == "age\n(years)"


async def test_the_list_of_parties_fits_into_a_message(town: Town, harvests: Tables, dial: Dial) -> None:
    async with dial(await town.join(MALLORY, harvests["bremen"])) as client:
        wide = [offer("x" * 150 + str(i), columns=100) for i in range(limits.OFFERS)]
        stream = client.stream(ATTEND, m.Hello(protocol=PROTOCOL, offers=wide))
        await anext(stream)
        await town.until(lambda: MALLORY in town.listening())
        guests = town.running.driver.machine.guests
        guests.update({f"{MALLORY} {i}": guests[MALLORY] for i in range(200)})
        async with town.operator() as operator:
            said = await operator.unary(PARTIES, m.PartiesRequest())
        await stream.aclose()
    assert len(said.parties) == 201
    assert len(said.parties[0].offers) == limits.OFFERS
    assert not said.parties[0].offers[0].columns
