"""The calling side: typed calls, Hansa's errors, and one function through which bytes leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, Generic

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from hansa.errors import UnreachableError
from hansa.telemetry import note
from hansa.wire.faults import from_status
from hansa.wire.rpcs import Kind, Q, R, Rpc

_EXCUSE = "Internal error from Core"

Record = Callable[[str, bytes], None]


class Client:
    """Calls over one channel.

    Args:
        channel: from :func:`~hansa.wire.channel.client_channel`; its owner closes it.
        record: called with the method's name and the serialised message, for every message, just before it is handed to
            the channel. If it raises, the message does not leave. A message that then cannot be delivered has been
            recorded all the same: the record may say more than left, and never less."""

    def __init__(self, channel: grpc.aio.Channel, *, record: Record | None = None) -> None:
        self._channel, self._record = channel, record

    async def unary(self, rpc: Rpc[Q, R], request: Q, *, timeout: float = 30.0) -> R:
        """One request, one reply, within ``timeout`` seconds; raises HansaError: what the coordinator raised, or
        UnreachableError or TrustError."""
        _require(rpc, "unary")
        call: Any = self._channel.unary_unary(rpc.path)
        data = self._leave(rpc, request)
        with _hansa_errors():
            return _decoded(rpc, await call(data, timeout=timeout))

    async def seen(self, rpc: Rpc[Q, R], request: Q) -> tuple[str, float]:
        """The coordinator's version and clock (seconds since 1970), whatever it answers; errors as in :meth:`unary`."""
        multicallable: Any = self._channel.unary_unary(rpc.path)
        call = multicallable(self._leave(rpc, request), timeout=10.0)
        with _hansa_errors():
            version, _, clock = str(dict([*await call.initial_metadata()]).get("hansa") or await call).partition(" ")
        return version, float(clock)

    async def stream(self, rpc: Rpc[Q, R], request: Q) -> AsyncGenerator[R, None]:
        """One request, replies until the coordinator ends them; errors as in :meth:`unary`."""
        _require(rpc, "server_stream")
        multicallable: Any = self._channel.unary_stream(rpc.path)
        call = multicallable(self._leave(rpc, request))
        try:
            async with contextlib.aclosing(aiter(call)) as replies:
                with _hansa_errors():
                    async for raw in replies:
                        yield _decoded(rpc, raw)
        finally:
            call.cancel()

    def bidi(self, rpc: Rpc[Q, R]) -> Conversation[Q, R]:
        """A conversation, to be used in ``async with``."""
        _require(rpc, "bidi")
        multicallable: Any = self._channel.stream_stream(rpc.path)
        return Conversation(rpc, multicallable(), self._leave)

    def _leave(self, rpc: Rpc[Any, Any], message: Message | bytes) -> bytes:
        """The one place at which a message becomes bytes that leave; bytes are one that is serialised already."""
        if not isinstance(message, rpc.request | bytes):
            raise TypeError(f"{rpc.name} sends {rpc.request.__name__}, not {type(message).__name__}")
        data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
        note("hansa_bytes", len(data), way="out")
        if self._record:
            self._record(rpc.name, data)
        return data


class Conversation(Generic[Q, R]):
    """Messages both ways, in any order; leaving the ``async with`` ends it."""

    def __init__(self, rpc: Rpc[Q, R], call: Any, leave: Callable[[Rpc[Any, Any], Message | bytes], bytes]) -> None:
        self._rpc, self._call, self._leave = rpc, call, leave
        # And not call.read(), which forgets replies after a failed write.
        self._replies = aiter(call)
        self._final: asyncio.Future[grpc.aio.AioRpcError] = asyncio.Future()
        call.add_done_callback(self._note_status)

    async def __aenter__(self) -> Conversation[Q, R]:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        await self._replies.aclose()

    async def send(self, message: Q | bytes) -> bool:
        """Send one message, or the bytes of one, waiting while the other side cannot take more.

        Returns:
            Whether it could be sent. If not, the coordinator has ended the call: its last replies,
            and why it ended, are to be had from :meth:`receive`."""
        data = self._leave(self._rpc, message)
        try:
            await self._call.write(data)
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            return False
        return True

    async def receive(self) -> R | None:
        """The next reply, or None when the coordinator has ended the call; raises HansaError: the coordinator refused,
        or is gone."""
        with _hansa_errors():
            try:
                return _decoded(self._rpc, await anext(self._replies))
            except StopAsyncIteration:
                return None
            except grpc.aio.AioRpcError:
                final = await self._final
                if final.code() is grpc.StatusCode.OK:
                    return None
                raise final from None

    def _note_status(self, call: Any) -> None:
        """Keep the status that the coordinator gave. A write that finds the call ended makes gRPC overwrite its status
        with an excuse, before the real one arrives or after. This is called at both, so the real one is caught here."""
        parts = call.code(), call.initial_metadata(), call.trailing_metadata(), call.details()
        error = grpc.aio.AioRpcError(*map(_at_once, parts))
        if error.details() != _EXCUSE and not self._final.done():
            self._final.set_result(error)


def _at_once(answer: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing left to wait for."""
    try:
        answer.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("gRPC called back before the status was there")


@contextlib.contextmanager
def _hansa_errors() -> Iterator[None]:
    """Turns what gRPC raises into an error of Hansa's tree."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_status(error) from error
    except asyncio.CancelledError:
        # gRPC raises this as well in whoever waits for a call when its channel is closed.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise UnreachableError("the channel to the coordinator was closed") from None


def _require(rpc: Rpc[Any, Any], kind: Kind) -> None:
    if rpc.kind != kind:
        raise TypeError(f"{rpc.name} is {rpc.kind}, not {kind}")


def _decoded(rpc: Rpc[Any, R], raw: bytes) -> R:
    note("hansa_bytes", len(raw), way="in")
    if issubclass(rpc.reply, bytes):
        return rpc.reply(raw)
    try:
        return rpc.reply.FromString(raw)
    except DecodeError as error:
        remedy = "Use the same version of Hansa on both sides."
        raise UnreachableError(f"the coordinator's answer to {rpc.name} cannot be read", remedy=remedy) from error
