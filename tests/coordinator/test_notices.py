"""What waits for a party to be read is one message, in which no notice contradicts another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hansa.contribution import Ask, Values
from hansa.coordinator.events import Notice, SettledNotice, WorkNotice
from hansa.coordinator.service import Coordinator
from hansa.secure.terms import Phase, Step
from hansa.wire import messages as m


def work(version: int, attempt: int = 1) -> WorkNotice:
    return WorkNotice("run", Ask("train", version, 1, Values(), ()), attempt, "00")


def step(version: int) -> Step:
    return Step("run", version, 1, Phase.MASK, b"")


async def added(*notices: Notice) -> m.Notice:
    async def as_message(notice: WorkNotice) -> m.Work:
        return m.Work(run=notice.run, version=notice.ask.version, attempt=notice.attempt)

    coordinator: Any = SimpleNamespace(_work=as_message)
    message = m.Notice()
    for notice in notices:
        await Coordinator._add(coordinator, message, notice)
    return message


async def test_a_slow_reader_does_not_begin_what_is_settled() -> None:
    message = await added(work(3), step(3), step(4), SettledNotice("run", 3, False, "late"), work(4))
    assert [one.version for one in message.settled] == [3]
    assert [one.version for one in message.work] == [4]
    assert [one.version for one in message.steps] == [4]


@pytest.mark.parametrize("other", [SettledNotice("run", 2, True), SettledNotice("other", 3, True)])
async def test_what_is_settled_of_another_exchange_takes_nothing_away(other: SettledNotice) -> None:
    message = await added(work(3), other)
    assert [one.version for one in message.work] == [3]


async def test_a_run_that_failed_and_goes_on_is_worked_on() -> None:
    message = await added(work(3), SettledNotice("run", 3, False, "failed"), work(3, attempt=2))
    assert [one.attempt for one in message.work] == [2]
