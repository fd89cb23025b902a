"""The answering side: a call is identified, checked against the table, and only then answered."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from hansa import __version__
from hansa.crypto.pki import Identity
from hansa.errors import ContributionError, TrustError, UnreachableError
from hansa.telemetry import note
from hansa.wire.faults import refuse
from hansa.wire.rpcs import RPCS, SERVICE, Q, Rpc

Context = grpc.aio.ServicerContext[bytes, bytes]
Authorise = Callable[[bytes, str], Identity]


def handlers(implementation: object, authorise: Authorise) -> grpc.GenericRpcHandler:
    """What a server needs to answer the calls of :data:`~hansa.wire.rpcs.RPCS`.

    Args:
        implementation: has a method for each rpc that it answers, in snake case, each taking the
            peer's :class:`~hansa.crypto.pki.Identity` last. Unary: ``async def join(request, peer)
            -> reply``. Server stream: an async generator ``attend(request, peer)``. Both ways: an
            async generator ``upload(requests, peer)``, where ``requests`` is an async iterator of
            bytes: messages to be :func:`decoded`, or the chunks of a body.
            A HansaError that it raises reaches the caller as the same error; anything else is
            logged, and the caller hears only that the coordinator failed.
        authorise: from a peer's certificate (PEM) and a call's name to its identity, at every call, so that a removal
            takes effect at once; raises TrustError for whom it does not accept.

    An rpc without a method is answered as unimplemented."""
    table = {}
    for rpc in RPCS.values():
        if (method := getattr(implementation, rpc.method, None)) is not None:
            made = _unary if rpc.kind == "unary" else _streamed
            table[rpc.name] = made(rpc, method, authorise)
    return grpc.method_handlers_generic_handler(SERVICE, table)


def _admit(rpc: Rpc[Any, Any], context: Context, authorise: Authorise) -> Identity:
    """The peer of this call, if it may make it; what is not clearly allowed is refused."""
    facts: Mapping[Any, Any] = context.auth_context()
    # gRPC's Python API cannot set a minimum version. Two peers that both offer 1.3, as all of Hansa's do, cannot be
    # talked down; one that offers only 1.2 is turned away here. (Older releases of grpcio do not tell the version.)
    if facts.get("ssl_tls_version", [b"TLSv1.3"]) != [b"TLSv1.3"]:
        raise TrustError("the connection is not TLS 1.3")
    certificates = facts.get("x509_pem_cert", [])
    if len(certificates) != 1:
        raise TrustError("the connection has no client certificate")
    peer = authorise(certificates[0], rpc.name)
    if peer.role not in rpc.roles:
        remedy = f"It is for: {', '.join(sorted(rpc.roles))}."
        raise TrustError(f"{rpc.name} is not for the role {peer.role!r}", remedy=remedy)
    return peer


async def _end(context: Context, rpc: Rpc[Any, Any], error: Exception | asyncio.CancelledError) -> NoReturn:
    """End a call that failed, or was cancelled."""
    if isinstance(error, grpc.aio.BaseError):
        raise asyncio.CancelledError from error  # the server has stopped under it: there is nobody to tell
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise error  # the caller left, or the server stops: gRPC knows
        # Something that the implementation waited for was cancelled. gRPC would take that for the
        # call's own end, and leave the caller without an answer.
        error = UnreachableError("the coordinator broke the call off")
    await refuse(context, rpc.name, error)


def decoded(rpc: Rpc[Q, Any], raw: bytes) -> Q:
    """A request; raises ContributionError: it cannot be read."""
    try:
        message: Q = rpc.request.FromString(raw)
    except DecodeError:
        raise ContributionError(f"what was sent to {rpc.name} cannot be read") from None
    return message


def _heard(raw: bytes) -> bytes:
    note("hansa_bytes", len(raw), way="in")
    return raw


def _encoded(reply: Message | bytes) -> bytes:
    raw = reply if isinstance(reply, bytes) else reply.SerializeToString()
    note("hansa_bytes", len(raw), way="out")
    return raw


async def _requests(context: Context) -> AsyncGenerator[bytes, None]:
    """What the caller sends. gRPC's own iterator cannot be closed, and leaves a warning behind."""
    read: Any = context.read  # its stub leaves out EOF
    while (raw := [await read()]) != [grpc.aio.EOF]:
        yield _heard(raw.pop())  # and hold nothing of it while the caller is silent


def _unary(rpc: Rpc[Any, Any], method: Any, authorise: Authorise) -> Any:
    async def answer(raw: bytes, context: Context) -> bytes:
        try:
            peer = _admit(rpc, context, authorise)
            await context.send_initial_metadata((("hansa", f"{__version__} {time.time():.0f}"),))
            return _encoded(await method(decoded(rpc, _heard(raw)), peer))
        except (Exception, asyncio.CancelledError) as error:
            await _end(context, rpc, error)

    return grpc.unary_unary_rpc_method_handler(answer)


def _streamed(rpc: Rpc[Any, Any], method: Any, authorise: Authorise) -> Any:
    async def answer(raw: Any, context: Context) -> AsyncIterator[bytes]:
        try:
            peer = _admit(rpc, context, authorise)
            async with AsyncExitStack() as open_:
                if rpc.kind == "bidi":
                    sent: Any = await open_.enter_async_context(aclosing(_requests(context)))
                else:
                    sent = decoded(rpc, _heard(raw))
                async for reply in await open_.enter_async_context(aclosing(method(sent, peer))):
                    yield _encoded(reply)
                    del reply
        except (Exception, asyncio.CancelledError) as error:
            await _end(context, rpc, error)

    if rpc.kind == "bidi":
        return grpc.stream_stream_rpc_method_handler(answer)
    return grpc.unary_stream_rpc_method_handler(answer)
