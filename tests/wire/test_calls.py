import asyncio
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc._cython import cygrpc

from hansa import errors
from hansa.errors import (
    ConsentError,
    ContributionError,
    HansaError,
    PipelineError,
    StudyError,
    TrustError,
    UnreachableError,
)
from hansa.wire import messages as m
from hansa.wire import rpcs
from hansa.wire.channel import MESSAGE
from hansa.wire.client import Conversation, _hansa_errors
from hansa.wire.faults import from_status
from hansa.wire.rpcs import RPCS
from hansa.wire.service import handlers


def tree(kind: type[HansaError] = HansaError) -> list[type[HansaError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in tree(child))]


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
async def test_an_error_arrives_as_what_it_was(world, kind):
    world.desk.failure = kind("表不对", remedy="再试一次。", party="北京", round=3, field="coefficients")
    async with world.dial() as client:
        with pytest.raises(HansaError) as caught:
            await client.unary(rpcs.DESCRIBE, m.Describe())
    assert type(caught.value) is next(known for known in kind.__mro__ if known.__module__ == "hansa.errors")
    assert str(caught.value) == str(world.desk.failure)
    assert caught.value.round == 3


async def test_an_error_with_a_very_long_text_still_arrives(world):
    world.desk.failure = StudyError("错" * 100_000, remedy="改" * 100_000)
    async with world.dial() as client:
        with pytest.raises(StudyError, match=r"^错+"):
            await client.unary(rpcs.DESCRIBE, m.Describe())


async def test_a_call_under_which_the_server_stops_ends_without_a_word(world, caplog):
    world.desk.failure = cygrpc._ServerStoppedError("Server already stopped")  # as a read or a write raises it then
    async with world.dial() as client:
        with pytest.raises(UnreachableError):
            await client.unary(rpcs.DESCRIBE, m.Describe(), timeout=1)
    assert not caplog.records


async def test_a_defect_is_logged_at_the_coordinator_and_tells_strangers_nothing(world, caplog):
    world.desk.failure = ValueError("the password is 1234")
    async with world.dial() as client:
        with pytest.raises(HansaError, match="the coordinator failed") as caught:
            await client.unary(rpcs.DESCRIBE, m.Describe())
    assert type(caught.value) is HansaError
    assert "1234" not in str(caught.value)
    assert "the password is 1234" in caplog.text


async def test_an_error_in_the_middle_of_a_stream_comes_after_what_went_before(world):
    world.desk.failure = ConsentError("no longer")
    async with world.dial() as client:
        stream = client.stream(rpcs.FETCH, m.FetchRequest())
        found = [await anext(stream) for _ in range(3)]
        with pytest.raises(ConsentError, match="no longer"):
            await anext(stream)
    assert found == [b"\0", b"\1", b"\2"]


async def test_a_stream_ends_when_all_has_been_said(world):
    async with world.dial() as client:
        chunks = [chunk async for chunk in client.stream(rpcs.FETCH, m.FetchRequest())]
    assert b"".join(chunks) == b"\0\1\2"


async def test_a_listener_that_leaves_ends_the_stream_at_the_coordinator(world):
    async with world.dial() as client:
        stream = client.stream(rpcs.ATTEND, m.Hello(version="v"))
        assert (await anext(stream)).welcome.coordinator == "v"
        await world.desk.streaming.wait()
        await stream.aclose()
        await asyncio.wait_for(world.desk.ended.wait(), 5)


async def test_a_coordinator_that_stops_ends_its_streams_as_unreachable(authority, world):
    server = await world.start()
    async with world.dial() as client:
        stream = client.stream(rpcs.ATTEND, m.Hello())
        await anext(stream)
        stopping = asyncio.ensure_future(server.stop(0))
        with pytest.raises(UnreachableError):
            await anext(stream)
        await stopping


async def test_a_conversation_goes_both_ways(world):
    async with world.dial() as client, client.bidi(rpcs.UPLOAD) as talk:
        assert await talk.send(m.UploadPart(head=m.Head(size=7)))
        reply = await talk.receive()
        assert reply is not None
        assert reply.resume.offset == 7
        for data in (b"a", b"b"):
            assert await talk.send(data)
        await talk._call.done_writing()
        reply = await talk.receive()
        assert reply is not None
        assert (reply.receipt.accepted, reply.receipt.reason) == (True, "ab")
        assert await talk.receive() is None


async def test_a_sender_learns_that_the_coordinator_has_answered_early(world):
    async with world.dial() as client, client.bidi(rpcs.UPLOAD) as talk:
        await talk.send(m.UploadPart(failure=m.Failure(reason="stop")))
        await asyncio.sleep(0.2)
        for _ in range(3):
            await talk.send(b"x")
        reply = await talk.receive()
        assert reply is not None
        assert reply.receipt.accepted
        assert await talk.receive() is None
        assert not await talk.send(b"x")


async def test_a_sender_is_told_why_the_coordinator_refused(world):
    async with world.dial() as client, client.bidi(rpcs.UPLOAD) as talk:
        await talk.send(m.UploadPart(failure=m.Failure(reason="raise")))
        while await talk.send(b"x"):
            pass
        with pytest.raises(ContributionError) as caught:
            await talk.receive()
        assert (caught.value.party, caught.value.round, caught.value.field) == ("诊所", 3, "w")
        assert not await talk.send(b"x")


async def test_a_cancellation_inside_the_coordinator_still_answers_the_caller(world):
    world.desk.failure = asyncio.CancelledError()
    async with world.dial() as client:
        with pytest.raises(UnreachableError, match="broke the call off"):
            await client.unary(rpcs.DESCRIBE, m.Describe(), timeout=5)
        with pytest.raises(UnreachableError, match="broke the call off"):
            await anext(client.stream(rpcs.ATTEND, m.Hello()))


async def test_a_call_that_the_coordinator_cancels_does_not_cancel_its_caller(world, monkeypatch):
    async def cancel(context: Any, method: str, error: Exception) -> None:
        await context.abort(grpc.StatusCode.CANCELLED, "stopped")

    monkeypatch.setattr("hansa.wire.service.refuse", cancel)
    world.desk.failure = ValueError()
    async with world.dial() as client:
        with pytest.raises(UnreachableError):
            await client.unary(rpcs.DESCRIBE, m.Describe(), timeout=5)
        with pytest.raises(UnreachableError):
            await anext(client.stream(rpcs.ATTEND, m.Hello()))
        async with client.bidi(rpcs.UPLOAD) as talk:
            with pytest.raises(UnreachableError):
                await talk.receive()


async def test_a_caller_that_is_cancelled_stays_cancelled(world):
    async with world.dial() as client:
        stream = client.stream(rpcs.ATTEND, m.Hello())
        await anext(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        await asyncio.wait_for(world.desk.ended.wait(), 5)


async def test_a_unary_caller_that_is_cancelled_stays_cancelled(world, monkeypatch):
    async def forever(request: m.Describe, peer: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(world.desk, "describe", forever)
    server = await world.start()
    async with world.dial() as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.unary(rpcs.DESCRIBE, m.Describe()), 0.1)
    await server.stop(0)


async def test_a_call_that_its_channel_cancels_does_not_cancel_who_waits_for_it():
    with pytest.raises(UnreachableError, match="was closed"), _hansa_errors():
        raise asyncio.CancelledError


class BrokenWrite:
    """A call that ended well while a write was under way, as gRPC then shows it."""

    def __init__(self) -> None:
        self.answers: tuple[grpc.StatusCode, str] = (grpc.StatusCode.OK, "")

    def add_done_callback(self, callback: Any) -> None:
        callback(self)
        self.answers = (grpc.StatusCode.INTERNAL, "Internal error from Core")
        callback(self)

    async def code(self) -> grpc.StatusCode:
        return self.answers[0]

    async def details(self) -> str:
        return self.answers[1]

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    trailing_metadata = initial_metadata

    async def __aiter__(self) -> Any:
        yield m.UploadReply(receipt=m.Receipt(accepted=True)).SerializeToString()
        empty = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(self.answers[0], empty, empty, self.answers[1])


async def test_a_write_that_came_too_late_does_not_turn_success_into_failure():
    talk = Conversation(rpcs.UPLOAD, BrokenWrite(), lambda rpc, message: b"")
    reply = await talk.receive()
    assert reply is not None
    assert reply.receipt.accepted
    assert await talk.receive() is None


async def test_leaving_a_conversation_early_frees_the_coordinator(world):
    async with world.dial() as client:
        async with client.bidi(rpcs.UPLOAD) as talk:
            await talk.send(m.UploadPart(head=m.Head(size=1)))
            assert await talk.receive() is not None
        await client.unary(rpcs.DESCRIBE, m.Describe())


async def test_everything_that_leaves_is_recorded_as_it_leaves(world):
    left: list[tuple[str, bytes]] = []
    async with world.dial(record=lambda method, data: left.append((method, data))) as client:
        await client.unary(rpcs.DESCRIBE, m.Describe(run="r"))
        _ = [chunk async for chunk in client.stream(rpcs.FETCH, m.FetchRequest(offset=9))]
        async with client.bidi(rpcs.UPLOAD) as talk:
            await talk.send(m.UploadPart(head=m.Head(size=1)))
            await talk._call.done_writing()
            await talk.receive()
    assert left == [
        ("Describe", m.Describe(run="r").SerializeToString()),
        ("Fetch", m.FetchRequest(offset=9).SerializeToString()),
        ("Upload", m.UploadPart(head=m.Head(size=1)).SerializeToString()),
    ]


async def test_what_cannot_be_recorded_does_not_leave(world):
    def full(method: str, data: bytes) -> None:
        raise OSError("the disk is full")

    async with world.dial(record=full) as client:
        with pytest.raises(OSError, match="disk is full"):
            await client.unary(rpcs.DESCRIBE, m.Describe())
        with pytest.raises(OSError, match="disk is full"):
            await anext(client.stream(rpcs.FETCH, m.FetchRequest()))
        async with client.bidi(rpcs.UPLOAD) as talk:
            with pytest.raises(OSError, match="disk is full"):
                await talk.send(m.UploadPart())
    assert [call for call in world.desk.calls if call[0] != "upload"] == []


async def test_the_wrong_message_or_kind_of_call_is_a_mistake_of_the_caller(world):
    async with world.dial() as client:
        with pytest.raises(TypeError, match="Describe sends Describe, not Hello"):
            await client.unary(rpcs.DESCRIBE, m.Hello())
        with pytest.raises(TypeError, match="Attend is server_stream, not unary"):
            await client.unary(rpcs.ATTEND, m.Hello())


async def raw_call(world: Any, path: str, data: bytes) -> bytes:
    """A call without the client's care."""
    async with world.dial() as client:
        reply: bytes = await client._channel.unary_unary(path)(data)
        return reply


async def test_bytes_that_are_no_message_are_refused(world):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(world, rpcs.DESCRIBE.path, b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(from_status(caught.value), ContributionError)
    assert world.desk.calls == []


@pytest.mark.parametrize("path", ["/hansa.Hansa/Nothing", rpcs.STATUS.path])
async def test_a_call_that_nobody_answers_says_so(world, path):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(world, path, b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "same version" in from_status(caught.value).remedy


async def test_a_message_that_is_too_large_is_refused(world):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await raw_call(world, rpcs.DESCRIBE.path, bytes(MESSAGE + 1))
    assert isinstance(from_status(caught.value), ContributionError)


async def test_an_answer_that_is_no_message_is_not_believed(world, monkeypatch):
    async def nonsense(request: m.Describe, peer: object) -> Any:
        return SimpleNamespace(SerializeToString=lambda: b"\xff\xff\xff")

    monkeypatch.setattr(world.desk, "describe", nonsense)
    server = await world.start()
    async with world.dial() as client:
        with pytest.raises(UnreachableError, match="cannot be read"):
            await client.unary(rpcs.DESCRIBE, m.Describe())
    await server.stop(0)


async def test_a_coordinator_that_does_not_answer_in_time_is_unreachable(world, monkeypatch):
    async def forever(request: m.Describe, peer: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(world.desk, "describe", forever)
    server = await world.start()
    async with world.dial() as client:
        with pytest.raises(UnreachableError, match="in time"):
            await client.unary(rpcs.DESCRIBE, m.Describe(), timeout=0.1)
    await server.stop(0)


def status(code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> HansaError:
    trailer = grpc.aio.Metadata(*trailing)
    return from_status(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailer, details))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, TrustError),
        (grpc.StatusCode.PERMISSION_DENIED, TrustError),
        (grpc.StatusCode.CANCELLED, UnreachableError),
        (grpc.StatusCode.UNKNOWN, HansaError),
    ],
)
def test_a_status_without_an_error_of_hansa_s_becomes_the_nearest(code, kind):
    assert type(status(code)) is kind


@pytest.mark.parametrize("name", ["OSError", "did_you_mean", "annotations", "Iterable", ""])
def test_the_other_side_cannot_choose_a_class_outside_the_tree(name):
    problem = m.Problem(kind=name, message="x").SerializeToString()
    found = status(grpc.StatusCode.UNKNOWN, trailing=[("hansa-problem-bin", problem)])
    assert type(found) is HansaError


def test_an_error_that_cannot_be_read_falls_back_to_the_status():
    trailing = [("hansa-problem-bin", b"\xff\xff")]
    assert type(status(grpc.StatusCode.PERMISSION_DENIED, "no", trailing)) is TrustError


def test_a_subclass_travels_as_its_own_class_under_its_parent_s_status():
    assert errors.PipelineError.__mro__[1] is StudyError
    problem = m.Problem(kind="PipelineError", message="x").SerializeToString()
    trailing = [("hansa-problem-bin", problem)]
    assert type(status(grpc.StatusCode.INVALID_ARGUMENT, "", trailing)) is PipelineError


def test_every_rpc_is_for_somebody_and_only_the_lobby_may_join():
    assert all(rpc.roles for rpc in RPCS.values())
    assert [name for name, rpc in RPCS.items() if "lobby" in rpc.roles] == ["Join"]
    assert RPCS["Join"].roles == {"lobby"}
    assert all(re.fullmatch("[a-z]+", rpc.method) for rpc in RPCS.values())


class Context:
    """A servicer context with given facts about the connection."""

    def __init__(self, facts: Mapping[str, list[bytes]]) -> None:
        self.facts = facts
        self.code: grpc.StatusCode | None = None
        self.problem = m.Problem()

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return self.facts

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        self.code, self.problem = code, m.Problem.FromString(trailing[0][1])
        raise grpc.aio.AbortError


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, "no client certificate"),
        ({"x509_pem_cert": []}, "no client certificate"),
        ({"x509_pem_cert": [b"a", b"b"]}, "no client certificate"),
        ({"x509_pem_cert": [b"a"], "ssl_tls_version": [b"TLSv1.2"]}, "not TLS 1.3"),
        ({"x509_pem_cert": [b"a"], "ssl_tls_version": []}, "not TLS 1.3"),
        ({"x509_pem_cert": [b"a"]}, "cannot be read"),
    ],
)
async def test_a_connection_that_does_not_prove_who_it_is_is_refused(world, facts, reason):
    table = handlers(world.desk, world.authorise)
    handler: Any = table.service(SimpleNamespace(method=rpcs.DESCRIBE.path))
    context = Context(facts)
    with pytest.raises(grpc.aio.AbortError):
        await handler.unary_unary(b"", context)
    assert context.code is grpc.StatusCode.PERMISSION_DENIED
    assert reason in context.problem.message
    assert world.desk.calls == []


async def test_a_gate_that_fails_stays_shut(world):
    def broken(pem: bytes) -> Any:
        raise KeyError(pem)

    handler: Any = handlers(world.desk, broken).service(SimpleNamespace(method=rpcs.DESCRIBE.path))
    context = Context({"x509_pem_cert": [b"a"]})
    with pytest.raises(grpc.aio.AbortError):
        await handler.unary_unary(b"", context)
    assert context.code is grpc.StatusCode.INTERNAL
    assert world.desk.calls == []
