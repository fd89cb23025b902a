"""The agent's program, a step at a time and without a coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from hansa.agent.home import AgentHome
from hansa.agent.service import Agent
from hansa.errors import UnreachableError
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


class Cut:
    """A coordinator whose link breaks after each chunk."""

    def __init__(self, body: bytes) -> None:
        self.body, self.offsets = body, list[int]()

    async def stream(self, rpc: Any, request: m.FetchRequest) -> AsyncIterator[m.Chunk]:
        self.offsets.append(request.offset)
        for number, chunk in enumerate(chunks.split(self.body, request.offset)):
            if number:
                raise UnreachableError("the link broke")
            yield chunk


async def test_a_fetch_goes_on_where_the_link_broke(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 4)
    body = b"0123456789"
    cut = Cut(body)
    agent._client = cut  # type: ignore[assignment]  # all of it that a fetch needs
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await agent._fetch(chunks.digest(body), len(body))
    assert await agent._fetch(chunks.digest(body), len(body)) == body
    assert cut.offsets == [0, 4, 8]
    assert agent._kept is None


async def test_another_body_is_fetched_from_its_beginning(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 4)
    cut = Cut(b"0123456789")
    agent._client = cut  # type: ignore[assignment]  # all of it that a fetch needs
    with pytest.raises(UnreachableError):
        await agent._fetch(chunks.digest(cut.body), 10)
    cut.body = b"abcd"
    assert await asyncio.wait_for(agent._fetch(chunks.digest(b"abcd"), 4), 5) == b"abcd"
    assert cut.offsets == [0, 0]
