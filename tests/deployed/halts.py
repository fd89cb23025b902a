"""A coordinator that dies around a commit, and an agent that is held at its work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from hansa.agent.machine import Asked, Worked
from hansa.agent.service import Agent
from hansa.coordinator.events import Effects


class Cut:
    """Stops a coordinator dead around its n-th commit that counts: before it, or before anybody is told."""

    def __init__(
        self,
        town: Any,
        number: int,
        when: str,
        counts: Callable[[Effects], bool] = lambda effects: bool(effects.changes),
    ) -> None:
        driver = town.running.driver
        self.reached, self.number = asyncio.Event(), number
        carry_out, commit = driver._carry_out, driver._commit

        async def cut(effects: Effects, done: Any) -> None:
            self.number -= counts(effects)
            if self.number:
                await carry_out(effects, done)
                return
            if when == "after":
                await driver.read(commit, effects)
            self.reached.set()
            await asyncio.Event().wait()

        driver._carry_out = cut


class Gate:
    """Holds a party's work at its door, as if it took long."""

    def __init__(self, agent: Agent, work: str = "train", round: int = 1) -> None:
        self.reached, self.opened, self.calls = asyncio.Event(), threading.Event(), 0
        loop, original = asyncio.get_running_loop(), agent._desk.work

        def slow(asked: Asked, *given: Any) -> Worked:
            if (asked.ask.work, asked.ask.round) == (work, round):
                self.calls += 1
                loop.call_soon_threadsafe(self.reached.set)
                assert self.opened.wait(20)
            return original(asked, *given)

        agent._desk.work = slow

    async def reach(self) -> None:
        await asyncio.wait_for(self.reached.wait(), 20)

    def open(self) -> None:
        self.opened.set()
