"""A whole federation on loopback, in one event loop: real calls, real certificates, real databases."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import numpy as np
import pytest

import hansa as hs
from hansa.agent import service as agent_service
from hansa.agent.home import AgentHome
from hansa.agent.left import Left
from hansa.agent.policy import Offer
from hansa.agent.service import Agent
from hansa.backends import Backend
from hansa.backends.remote import Remote, complete
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.service import Coordinator
from hansa.crypto.token import Token
from hansa.run import Run
from hansa.wire import messages as m
from hansa.wire.client import Client
from hansa.wire.rpcs import INVITE, SUBMIT

KINDS = ("linear-regression", "logistic-regression", "softmax-regression", "poisson-regression", "cox-regression")
PATIENCE = 20.0
"""Seconds after which a test gives up waiting; nothing takes so long unless it hangs."""
REPEATED = {"attacks", "chaos", "contracts", "faults", "truths"}
"""Folders whose tests take the same lines a thousand times, which others have counted."""


def pytest_configure() -> None:
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # behind nohup or &, and then every program that a test starts
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in REPEATED:
            item.add_marker("untraced")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Counts no line of a test that is ``untraced``, nor of the programs it starts: to count doubles its time."""
    counting = coverage.Coverage.current() if item.get_closest_marker("untraced") else None
    if counting is None:
        return (yield)
    counting.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        try:
            return (yield)
        finally:
            counting.start()


@dataclass
class Town:
    """A coordinator and its agents; each can be killed without a goodbye, and started again.

    Args:
        folder: where everybody lives.
        dataset: the name under which every party offers its table.
    """

    folder: Path
    dataset: str = "tumours"
    port: int = 0
    coordinator: Coordinator | None = None
    tables: dict[str, hs.Table] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    said: dict[str, list[str]] = field(default_factory=dict)

    # --- the coordinator

    async def open(self) -> Coordinator:
        """Start the coordinator, on the port it had before."""
        home = CoordinatorHome.open(self.folder / "coordinator", "Lübeck")
        self.coordinator = Coordinator(home, "127.0.0.1")
        self.port = await self.coordinator.start("127.0.0.1", self.port)
        return self.coordinator

    async def kill(self) -> None:
        """End the coordinator as a power cut would: nothing more is committed, nobody is told."""
        coordinator, self.coordinator = self.coordinator, None
        if coordinator is not None:
            await coordinator.driver.stop()
            await coordinator._server.stop(0)

    @property
    def running(self) -> Coordinator:
        assert self.coordinator is not None
        return self.coordinator

    @property
    def remote(self) -> Remote:
        return Remote(self.folder / "coordinator")

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[Client]:
        """Calls as the operator."""
        async with self.remote.client() as client:
            yield client

    async def invite(self, name: str, seconds: int = 3600) -> Token:
        async with self.operator() as client:
            request = m.InviteRequest(party=name, lifetime_seconds=seconds)
            return Token.decode((await client.unary(INVITE, request)).token)

    async def submit(self, federation: hs.Federation) -> str:
        async with self.operator() as client:
            reply = await client.unary(SUBMIT, m.SubmitRequest(federation=federation.to_json()))
            return reply.run

    async def watch(self, run: str) -> Run:
        """Follow a run to its end, from another thread as a notebook would."""
        return await asyncio.wait_for(asyncio.to_thread(self.remote.watch, run), PATIENCE)

    async def run(self, federation: hs.Federation) -> Run:
        return await self.watch(await self.submit(federation))

    async def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        """Rows of the coordinator's database, read in its thread."""
        driver = self.running.driver
        found: list[dict[str, Any]] = await driver.read(lambda: driver.store.rows(table, **where))
        return found

    # --- parties

    def home(self, name: str) -> AgentHome:
        return AgentHome.open(self.folder / name)

    async def join(self, name: str, table: hs.Table) -> AgentHome:
        """Invite a party and let it join; its agent is not started."""
        self.tables[name] = table
        left = Left(self.folder / name / "left.jsonl")
        try:
            return await AgentHome.join(self.folder / name, await self.invite(name), left)
        finally:
            left.close()

    def begin(self, name: str, allow: Sequence[str] = KINDS, home: AgentHome | None = None) -> Agent:
        """Start a party's agent in its folder."""
        offers = [Offer(self.dataset, self.tables[name], tuple(allow))]
        say = self.said.setdefault(name, []).append
        agent = Agent(home or self.home(name), offers, say=say)
        self.agents[name] = agent
        self.tasks[name] = asyncio.create_task(agent.run())
        return agent

    async def end(self, name: str) -> None:
        """Kill a party's agent: its connection breaks, what it had not committed is lost."""
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def settle(self, tables: Mapping[str, hs.Table]) -> None:
        """Let parties join, start, and be there."""
        for name, table in tables.items():
            await self.join(name, table)
            self.begin(name)
        await self.present(*tables)

    async def present(self, *names: str) -> None:
        """Wait until exactly these parties listen."""
        await self.until(lambda: self.listening() == set(names))

    def listening(self) -> set[str]:
        guests = self.running.driver.machine.guests
        return {name for name, guest in guests.items() if guest.listening}

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        for name in list(self.tasks):
            await self.end(name)
        if self.coordinator is not None:
            await self.coordinator.stop()


@dataclass
class Deployed:
    """The deployed federation as a backend: founded for one run, gone after it."""

    folder: Path
    tables: Mapping[str, hs.Table]

    def run(self, federation: hs.Federation) -> Run:
        return complete(self._run(federation))

    async def _run(self, federation: hs.Federation) -> Run:
        number = len(list(self.folder.iterdir())) if self.folder.exists() else 0
        town = Town(self.folder / str(number), federation.dataset)
        try:
            await town.open()
            await town.settle(self.tables)
            return await asyncio.to_thread(town.remote.run, federation)
        finally:
            await town.close()


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, hs.Table]], Deployed]:
    """Makes the deployed backend among parties with these tables."""
    monkeypatch.setattr(agent_service, "LONGEST_PAUSE", 0.2)
    return lambda tables: Deployed(tmp_path / "deployed", tables)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """A real cluster of one node with two cores, to which this process is connected."""
    ray: Any = pytest.importorskip("ray", reason="Ray is missing: pip install 'hansa[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 2, "object_store_memory": 200_000_000, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def ray(ray_cluster: Any) -> Callable[[Mapping[str, hs.Table]], Backend]:
    """Makes the backend on that cluster."""
    return lambda tables: hs.Ray("auto", tables)


@pytest.fixture
async def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    """A coordinator that runs, without a party yet."""
    monkeypatch.setattr(agent_service, "LONGEST_PAUSE", 0.2)
    made = Town(tmp_path)
    await made.open()
    yield made
    with contextlib.suppress(asyncio.CancelledError):
        await made.close()


@pytest.fixture(scope="session")
def harvests() -> dict[str, hs.Table]:
    """Three parties of unequal size with two numbers, a binary target and one of three classes."""
    random = np.random.default_rng(5)
    tables: dict[str, hs.Table] = {}
    for shift, (name, rows) in enumerate({"bremen": 24, "lübeck": 40, "上海": 31}.items()):
        x = random.normal(shift, 2.0, (rows, 2))
        score = x[:, 0] - x[:, 1] + random.normal(0, 1, rows)
        columns: dict[str, Any] = {
            "a": x[:, 0],
            "b": x[:, 1],
            "y": (score > 0.5).astype(float),
            "c": np.digitize(score, [-1.0, 1.0]).astype(float),
        }
        tables[name] = hs.Table.of(columns)
    return tables


@pytest.fixture(scope="session")
def study() -> Callable[..., hs.Federation]:
    """A small federation among the harvests; every part of it can be given otherwise."""

    def make(**parts: Any) -> hs.Federation:
        fields: dict[str, Any] = {
            "name": "tumours",
            "task": hs.LogisticRegression(target="y", features=("a", "b")),
            "method": hs.FedAvg(local=hs.SGD(lr=0.2, batch_size=8)),
            "rounds": 3,
            **parts,
        }
        return hs.Federation(**fields)

    return make
