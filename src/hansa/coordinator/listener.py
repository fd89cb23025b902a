"""A party that listens, and what it is still to be told."""

import asyncio

from hansa.coordinator.events import Notice, WorkNotice

ASKS = 100  # asks that may wait for a party to read them, beside one of every run under way


class Listener:
    """An open Attend, made in the task that serves it.

    A party that does not read blocks its stream for as long as its connection stands, and each ask holds arrays.
    Whoever leaves too many unread is cut off; when it comes back, it hears what is still open."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Notice | None] = asyncio.Queue()
        self._task, self._asks = asyncio.current_task(), 0
        self._over, self.instance = False, b""

    def tell(self, notice: Notice, under_way: int) -> bool:
        """Let the party hear a notice; False if it left too many unread and was cut off. As many more may wait as there
        are runs ``under_way``, each with an open ask for it."""
        if self._over:
            return True
        self._asks += isinstance(notice, WorkNotice)
        if self._asks > ASKS + under_way:
            self.end()
            if self._task is not None:
                self._task.cancel()
            return False
        self._queue.put_nowait(notice)
        return True

    def end(self) -> None:
        """Let the stream end, without what is still waiting."""
        self._over = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    async def next(self) -> Notice | None:
        """The next notice; None when the stream is to end."""
        return self._taken(await self._queue.get())

    def more(self) -> Notice | None:
        """The next notice if there is one already."""
        return None if self._over or self._queue.empty() else self._taken(self._queue.get_nowait())

    def _taken(self, notice: Notice | None) -> Notice | None:
        self._asks -= isinstance(notice, WorkNotice)
        return notice
