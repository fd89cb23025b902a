"""The agent's program, a step at a time and without a coordinator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from hansa import tensors
from hansa.agent import service as agent_service
from hansa.agent.home import AgentHome
from hansa.agent.machine import Asked, Latest, Settled
from hansa.agent.service import Agent
from hansa.contribution import Ask, Values
from hansa.crypto import pki
from hansa.database import Put
from hansa.errors import ContributionError, HansaError, StoreError, UnreachableError
from hansa.privacy.claim import Privacy
from hansa.wire import chunks
from hansa.wire import messages as m


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    home = AgentHome(tmp_path, "bremen", "hanse", "127.0.0.1:1", b"", b"", b"")
    made = Agent(home, [])
    yield made
    made._left.close()
    made._store.close()


async def test_an_owner_learns_why_an_answer_was_not_counted(agent: Agent) -> None:
    settled = [
        m.Settled(run="run", version=1, counted=True),
        m.Settled(run="run", version=2, counted=False, reason="no answer within 600 s"),
        m.Settled(run="run", version=3, counted=False),
    ]
    with structlog.testing.capture_logs() as logged:
        await agent._noticed(m.Notice(settled=settled))
    warned = [line for line in logged if line["log_level"] == "warning"]
    assert [(line["version"], line["reason"]) for line in warned] == [
        (2, "no answer within 600 s"),
        (3, "the run ended, or went on without it"),
    ]


@pytest.mark.parametrize("counted", [True, False])
async def test_an_ask_that_is_settled_while_it_is_fetched_costs_nothing(
    agent: Agent, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[Any] = []
    ask = Ask("train", 1, 1, Values(), ())

    async def understood(work: m.Work) -> Asked:
        if not handled:
            await agent._noticed(m.Notice(settled=[m.Settled(run="run", version=1, counted=counted)]))
        return Asked("run", ask, work.attempt, "")

    async def handle(event: Any) -> None:
        handled.append(event)
        agent._machine.handle(event)

    agent._machine.latest["run"] = Latest("run", "", 1, ask.digest)  # answered in an earlier attempt
    monkeypatch.setattr(agent._ledger, "counted", lambda *_: None)
    monkeypatch.setattr(agent, "_understood", understood)
    monkeypatch.setattr(agent, "_handle", handle)
    await agent._take(m.Work(run="run", work="train", version=1, attempt=1))
    assert [type(event) for event in handled] == [Settled]
    await agent._take(m.Work(run="run", work="train", version=1, attempt=2))  # the run failed, and goes on
    assert [type(event) for event in handled] == [Settled, Asked]
    assert bool(agent._machine._working) is not counted


def test_memories_are_as_old_as_the_last_charge_of_their_run(agent: Agent) -> None:
    rows = [Put("memory", {"run": run, "body": b"memory"}) for run in ("north", "south", "east")]
    charge = agent._ledger.charge({"run": "", "version": 1, "attempt": 1, "at": "now"}, Privacy(), ())
    runs = ("north", "east", "south", "north")
    charges = [{**charge, "number": number, "run": run} for number, run in enumerate(runs)]
    agent._store.apply([*rows, *(Put("charge", row) for row in charges)])
    again = Agent(agent.home, [])
    assert [*again._machine.memories] == ["east", "south", "north"]
    again._left.close()
    again._store.close()


class Cut:
    """A coordinator whose link breaks after each chunk."""

    def __init__(self, body: bytes) -> None:
        self.body, self.offsets = body, list[int]()

    async def stream(self, rpc: Any, request: m.FetchRequest) -> AsyncIterator[bytes]:
        self.offsets.append(request.offset)
        for number, chunk in enumerate(chunks.split(self.body, request.offset)):
            if number:
                raise UnreachableError("the link broke")
            yield chunk


async def test_a_fetch_goes_on_where_the_link_broke(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 4)
    body = b"0123456789"
    cut = Cut(body)
    agent._client = cut  # all of it that a fetch needs
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await agent._fetch(tensors.digest(body), len(body))
    assert await agent._fetch(tensors.digest(body), len(body)) == body
    assert cut.offsets == [0, 4, 8]
    assert agent._kept is None


async def test_another_body_is_fetched_from_its_beginning(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 4)
    cut = Cut(b"0123456789")
    agent._client = cut  # all of it that a fetch needs
    with pytest.raises(UnreachableError):
        await agent._fetch(tensors.digest(cut.body), 10)
    cut.body = b"abcd"
    assert await asyncio.wait_for(agent._fetch(tensors.digest(b"abcd"), 4), 5) == b"abcd"
    assert cut.offsets == [0, 0]


class Failing:
    """A coordinator that answers every call with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def unary(self, rpc: Any, request: Any) -> Any:
        raise self.error

    def stream(self, rpc: Any, request: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [HansaError("the coordinator failed"), StoreError("damaged")])
async def test_an_error_of_the_coordinators_own_excuses_nobody(agent: Agent, error: HansaError) -> None:
    agent._client = Failing(error)  # all of it that is called
    with pytest.raises(UnreachableError, match="the coordinator failed"):
        await agent._take(m.Work(run="run", work="train", attempt=1, ask=b"{}"))


async def test_a_renewal_that_the_coordinator_fails_is_tried_again_later(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.asynccontextmanager
    async def channel() -> AsyncIterator[None]:
        yield

    failing = Failing(StoreError("the disk is full"))
    monkeypatch.setattr(pki, "renewal_due", lambda certificate: True)
    monkeypatch.setattr(pki, "require_valid", lambda certificate: None)
    monkeypatch.setattr(agent_service, "Client", lambda *_, **__: failing)
    monkeypatch.setattr(agent, "_channel", channel)
    with pytest.raises(UnreachableError, match="the disk is full"):
        await agent._renew_if_due()


@pytest.mark.parametrize("numbers", [{"version": 1 << 63}, {"round": 1 << 63}, {"attempt": 1 << 63}, {"attempt": 0}])
async def test_a_number_that_no_database_can_keep_ends_nothing(agent: Agent, numbers: dict[str, int]) -> None:
    said = list[Any]()

    async def handle(event: Any) -> None:
        said.append(event)

    agent._handle = handle
    said_with: dict[str, Any] = {"attempt": 1, **numbers}
    await agent._take(m.Work(run="run", work="train", **said_with))
    assert [event.reason.rpartition(": ")[2] for event in said] == ["a number of the ask is too large, or none"]


async def pauses(agent: Agent, monkeypatch: pytest.MonkeyPatch, sessions: int, seconds: float) -> list[float]:
    """The longest that the agent would wait after each of some sessions."""
    clock, waited = [0.0], list[float]()

    async def session() -> None:
        await agent._noticed(m.Notice(welcome=m.Welcome(coordinator="hanse")))
        clock[0] += seconds
        raise UnreachableError("it fails at once, again and again")

    async def sleep(wait: float) -> None:
        waited.append(wait)
        if len(waited) == sessions:
            raise asyncio.CancelledError

    monkeypatch.setattr("hansa.agent.service.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("hansa.agent.service.random.uniform", lambda low, high: high)
    monkeypatch.setattr("hansa.agent.service.asyncio.sleep", sleep)
    monkeypatch.setattr(agent, "_session", session)
    with pytest.raises(asyncio.CancelledError):
        await agent.run()
    return waited


async def test_an_agent_that_fails_after_every_welcome_waits_longer_and_longer(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = await pauses(agent, monkeypatch, 34, 0.0)
    assert waited == pytest.approx([*(0.1 * 1.1**number for number in range(32)), 2.0, 2.0])


async def test_an_agent_whose_session_lasted_comes_back_at_once(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await pauses(agent, monkeypatch, 3, 10.0) == [0.1, 0.1, 0.1]


async def test_a_settled_number_that_no_database_can_keep_and_runs_without_end_leave_no_rows(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_service, "PENDING", 3)
    huge = [m.Settled(run="run", version=version, counted=True) for version in (1 << 47, 1 << 63, (1 << 64) - 1)]
    await agent._noticed(m.Notice(settled=huge))
    assert not agent._store.rows("charge")
    runs = [m.Settled(run=f"run {number}", version=1, counted=True) for number in range(9)]
    await agent._noticed(m.Notice(settled=runs))
    assert len(agent._store.rows("charge")) == 3


async def test_a_body_larger_than_its_study_has_to_send_is_not_fetched(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent._client = Failing(UnreachableError("fetched"))  # all of it that is called
    monkeypatch.setattr(agent._desk, "knows", lambda *about: True)
    monkeypatch.setattr(agent._desk, "begins", lambda run: 500)
    monkeypatch.setattr(agent_service, "ROOM", 1000)
    work: dict[str, Any] = {"run": "run", "work": "train", "attempt": 1, "digest": bytes(32), "ask": b"{}"}
    for size in (1000, 1500):
        with pytest.raises(UnreachableError, match="fetched"):
            await agent._understood(m.Work(**work, size=size))
    for size in (1501, 1 << 40, (1 << 64) - 1):
        with pytest.raises(ContributionError, match="more than the study has to send"):
            await agent._understood(m.Work(**work, size=size))
