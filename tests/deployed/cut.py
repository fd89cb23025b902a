"""A coordinator that dies around a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

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
