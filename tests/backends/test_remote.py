"""A coroutine that runs in a thread of its own, and the Ctrl-C that ends it."""

import asyncio
import os
import signal
import threading

import pytest

from hansa.backends.remote import complete


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent otherwise there")
def test_an_interrupted_coroutine_has_ended_when_the_interruption_goes_on():
    done = []

    async def slow_to_end():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.3)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        complete(slow_to_end())
    assert done == [True]


def test_what_a_coroutine_returns_and_raises_comes_out():
    async def answers(value):
        if value is None:
            raise LookupError("nothing")
        return value

    assert complete(answers(3)) == 3
    with pytest.raises(LookupError, match="nothing"):
        complete(answers(None))
