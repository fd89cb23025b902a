import asyncio
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from hansa.crypto import pki
from hansa.errors import TrustError, UnreachableError, UsageError
from hansa.wire import channel, rpcs
from hansa.wire import messages as m
from hansa.wire.channel import client_channel, serve


async def test_each_role_reaches_what_is_its_own(world):
    for role, rpc, message in [
        ("lobby", rpcs.JOIN, m.JoinRequest(csr=b"c")),
        ("party", rpcs.DESCRIBE, m.Describe(run="r")),
        ("operator", rpcs.RUNS, m.RunsRequest()),
    ]:
        async with world.dial(role) as client:
            await client.unary(rpc, message)
    assert world.desk.calls == [("join", "lobby", ""), ("describe", "party", "诊所"), ("runs", "operator", "诊所")]


@pytest.mark.parametrize(
    ("role", "rpc", "message"),
    [
        ("lobby", rpcs.DESCRIBE, m.Describe(run="r")),
        ("lobby", rpcs.RUNS, m.RunsRequest()),
        ("party", rpcs.RUNS, m.RunsRequest()),
        ("party", rpcs.JOIN, m.JoinRequest()),
        ("operator", rpcs.JOIN, m.JoinRequest()),
    ],
)
async def test_a_role_that_an_rpc_is_not_for_is_refused(world, role, rpc, message):
    async with world.dial(role) as client:
        with pytest.raises(TrustError, match=f"{rpc.name} is not for the role '{role}'"):
            await client.unary(rpc, message)
    assert world.desk.calls == []


async def test_the_coordinator_s_own_certificate_is_not_for_dialling(world):
    async with world.dial(pair=world.authority.server_certificate("x")) as client:
        with pytest.raises(UnreachableError):
            await client.unary(rpcs.DESCRIBE, m.Describe())
    assert world.desk.calls == []


async def test_a_name_forged_in_the_lobby_is_refused(world):
    async with world.dial(pair=world.pair(signer=world.lobby)) as client:
        for rpc, message in [(rpcs.DESCRIBE, m.Describe()), (rpcs.JOIN, m.JoinRequest())]:
            with pytest.raises(TrustError, match="only the authority gives names"):
                await client.unary(rpc, message)
        with pytest.raises(TrustError, match="only the authority gives names"):
            _ = [notice async for notice in client.stream(rpcs.ATTEND, m.Hello())]
        async with client.bidi(rpcs.UPLOAD) as talk:
            with pytest.raises(TrustError, match="only the authority gives names"):
                await talk.receive()
    assert world.desk.calls == []


async def test_a_certificate_of_another_authority_is_refused(world):
    other = pki.Authority.create("other")
    async with world.dial(pair=world.pair(signer=other)) as client:
        with pytest.raises(UnreachableError, match="cannot be reached") as caught:
            await client.unary(rpcs.DESCRIBE, m.Describe())
    assert "certificate" in caught.value.remedy
    assert world.desk.calls == []


async def test_an_expired_certificate_is_refused_by_both_sides(world, expired, monkeypatch):
    pair = expired(world)
    with pytest.raises(TrustError, match="expired on"):
        async with world.dial(pair=pair):
            pass
    monkeypatch.setattr("hansa.wire.channel.require_valid", lambda pem: None)
    async with world.dial(pair=pair) as client:
        with pytest.raises(UnreachableError):
            await client.unary(rpcs.DESCRIBE, m.Describe())
    assert world.desk.calls == []


async def test_a_removed_party_is_refused_at_its_next_call_on_the_same_connection(world):
    async with world.dial() as client:
        await client.unary(rpcs.DESCRIBE, m.Describe())
        world.removed.add("诊所")
        with pytest.raises(TrustError, match="was removed"):
            await client.unary(rpcs.DESCRIBE, m.Describe())


async def test_a_token_that_pins_another_key_refuses_the_server(world):
    root = pki.trust_anchor(pki.Authority.create("other").public_key)
    async with world.dial("lobby", root=root) as client:
        with pytest.raises(TrustError, match="not the one that was joined") as caught:
            await client.unary(rpcs.JOIN, m.JoinRequest(secret=b"never leaves"))
    assert "token" in caught.value.remedy
    assert world.desk.calls == []


async def test_the_authority_s_own_certificate_serves_as_root_as_well(world):
    async with world.dial(root=world.authority.certificate_pem) as client:
        await client.unary(rpcs.DESCRIBE, m.Describe())


async def test_a_party_cannot_pose_as_the_coordinator(authority, world):
    key, certificate = world.pair(name=pki.SERVER_NAME)
    server = await world.start(key_pem=key, certificate_pem=certificate)
    async with world.dial() as client:
        with pytest.raises(TrustError):
            await client.unary(rpcs.DESCRIBE, m.Describe())
    await server.stop(0)
    assert world.desk.calls == []


def handshake(world, folder: Path, most: ssl.TLSVersion) -> str | None:
    """The version that Python's ssl and the server agree on."""
    key, certificate = world.pair()
    root = pki.trust_anchor(world.authority.public_key)
    for name, pem in {"key": key, "certificate": certificate, "root": root}.items():
        (folder / name).write_bytes(pem)
    context = ssl.create_default_context(cafile=folder / "root")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_cert_chain(folder / "certificate", folder / "key")
    context.set_alpn_protocols(["h2"])
    context.maximum_version = most
    with (
        socket.create_connection(("127.0.0.1", world.port)) as raw,
        context.wrap_socket(raw, server_hostname=pki.SERVER_NAME) as wrapped,
    ):
        return wrapped.version()


async def test_tls_1_3_is_negotiated_under_a_trust_anchor_that_python_accepts_too(world, tmp_path):
    found = await asyncio.to_thread(handshake, world, tmp_path, ssl.TLSVersion.MAXIMUM_SUPPORTED)
    assert found == "TLSv1.3"


async def test_python_s_ssl_refuses_another_pin_too(world, tmp_path, monkeypatch):
    other = pki.Authority.create("other").public_key
    monkeypatch.setattr(pki, "trust_anchor", lambda key, make=pki.trust_anchor: make(other))
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.to_thread(handshake, world, tmp_path, ssl.TLSVersion.MAXIMUM_SUPPORTED)


async def test_the_certificate_is_renewed_without_a_restart(authority, world):
    renewals: list[tuple[bytes, bytes]] = []
    server = await world.start(renewed=lambda: renewals[-1] if renewals else None)

    async def served() -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        address = ("127.0.0.1", world.port)

        def look() -> bytes:
            with socket.create_connection(address) as raw, context.wrap_socket(raw) as wrapped:
                return wrapped.getpeercert(binary_form=True) or b""

        return await asyncio.to_thread(look)

    first = await served()
    assert await served() == first
    renewals.append(authority.server_certificate("汉萨"))
    assert await served() != first
    async with world.dial() as client:
        await client.unary(rpcs.DESCRIBE, m.Describe())
    await server.stop(0)


async def test_a_renewal_that_fails_leaves_the_last_certificate(authority, world, caplog, monkeypatch):
    fetchers = []
    make = grpc.dynamic_ssl_server_credentials

    def note(first, fetch, **options):
        fetchers.append(fetch)
        return make(first, fetch, **options)

    monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", note)
    answers = [None, authority.server_certificate("a"), None, OSError("disk")]

    def renewed() -> tuple[bytes, bytes] | None:
        answer = answers.pop(0) if answers else None
        if isinstance(answer, OSError):
            raise answer
        return answer

    server = await world.start(renewed=renewed)
    first, second, third, fourth = (fetchers[0]() for _ in range(4))
    assert second is not None
    assert (first, third, fourth) == (None, None, None)  # what is unchanged is not handed out again
    assert "could not be renewed" in caplog.text
    async with world.dial() as client:
        await client.unary(rpcs.DESCRIBE, m.Describe())
    await server.stop(0)


async def test_a_port_in_use_is_named_with_the_way_out(world):
    with pytest.raises(UnreachableError, match=f"port {world.port} on 127.0.0.1 is in use") as caught:
        await world.start(port=world.port)
    assert "--port 0" in caught.value.remedy


async def test_an_address_of_another_machine_cannot_be_listened_on(world):
    with pytest.raises(UnreachableError, match=r"cannot listen on 192\.0\.2\.1:0") as caught:
        await world.start(host="192.0.2.1")
    assert "0.0.0.0" in caught.value.remedy


async def test_a_port_that_this_user_may_not_have_is_told_from_one_in_use(world, monkeypatch):
    busy = world.port

    def deny(self: socket.socket, address: object) -> None:
        raise PermissionError

    monkeypatch.setattr(socket.socket, "bind", deny)
    with pytest.raises(UnreachableError, match="may not listen"):
        await world.start(port=busy)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
async def test_ipv6_addresses_work(world):
    try:
        server = await world.start(host="::1")
    except UnreachableError:
        pytest.skip("this machine has no IPv6 loopback")
    async with world.dial(host="[::1]") as client:
        await client.unary(rpcs.DESCRIBE, m.Describe())
    await server.stop(0)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_ignores_proxy_settings(world, monkeypatch, variable, host):
    for name in ("no_proxy", "no_grpc_proxy", "http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    async with world.dial(host=host) as client:
        await client.unary(rpcs.DESCRIBE, m.Describe())


@pytest.mark.parametrize("address", ["fl.example.org:8443", "192.0.2.7:8443", "[2001:db8::1]:1"])
async def test_other_hosts_may_be_behind_a_proxy(world, monkeypatch, address):
    seen: list[dict[str, object]] = []

    def note(target: str, credentials: object, options: list[tuple[str, object]]) -> None:
        seen.append(dict(options))

    monkeypatch.setattr("grpc.aio.secure_channel", note)
    key, certificate = world.pair()
    client_channel(address, key_pem=key, certificate_pem=certificate, root_pem=world.roots)
    assert seen[0]["grpc.enable_http_proxy"] == 1


async def test_what_is_no_address_cannot_be_dialled(world):
    key, certificate = world.pair()
    with pytest.raises(UsageError, match="is not an address"):
        client_channel("nowhere", key_pem=key, certificate_pem=certificate, root_pem=world.roots)


async def test_a_coordinator_that_is_down_is_unreachable_and_found_again_when_it_is_back(world):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world.port = free.getsockname()[1]
    async with world.dial() as client:
        with pytest.raises(UnreachableError, match="cannot be reached"):
            await client.unary(rpcs.DESCRIBE, m.Describe())
        server = await world.start(port=world.port)
        for _ in range(40):
            try:
                await client.unary(rpcs.DESCRIBE, m.Describe())
                break
            except UnreachableError:
                await asyncio.sleep(0.05)
        else:
            pytest.fail("not found again within two seconds")
        await server.stop(0)


async def test_an_idle_party_may_ping_as_often_as_it_likes(world, monkeypatch):
    often = [(name, value) for name, value in channel._COMMON if name != "grpc.keepalive_time_ms"]
    monkeypatch.setattr(channel, "_COMMON", [*often, ("grpc.keepalive_time_ms", 50)])
    async with world.dial() as client:
        stream = client.stream(rpcs.ATTEND, m.Hello())
        await anext(stream)
        with pytest.raises(TimeoutError):  # and not UnreachableError: too many pings
            await asyncio.wait_for(anext(stream), 3.5)  # gRPC pings once a second at most


async def test_what_does_not_speak_tls_is_no_coordinator(world):
    async def say_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(say_hello, "127.0.0.1", 0) as other:
        world.port = other.sockets[0].getsockname()[1]
        async with world.dial() as client:
            with pytest.raises(UnreachableError, match="no coordinator of Hansa's"):
                await client.unary(rpcs.DESCRIBE, m.Describe())


def test_a_mistake_prints_no_page_of_grpc_s_own_log():
    code = """
import asyncio, hansa.wire.channel as c
from hansa.crypto import pki
from hansa.errors import UnreachableError
async def main():
    a = pki.Authority.create("a")
    key, certificate = a.server_certificate("a")
    pems = dict(key_pem=key, certificate_pem=certificate, roots_pem=a.certificate_pem)
    server, port = await c.serve(host="127.0.0.1", port=0, **pems)
    try:
        await c.serve(host="127.0.0.1", port=port, **pems)
    except UnreachableError:
        print("in use")
    await server.stop(0)
asyncio.run(main())
"""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=quiet)
    assert (done.stdout.strip(), done.stderr.strip()) == ("in use", "")


async def test_a_server_needs_no_service_to_start(authority):
    key, certificate = authority.server_certificate("a")
    server, port = await serve(
        host="127.0.0.1", port=0, key_pem=key, certificate_pem=certificate, roots_pem=authority.certificate_pem
    )
    assert 0 < port < 65536
    await server.stop(0)


@pytest.mark.skipif(os.name == "nt", reason="nothing forks there")
async def test_a_program_that_is_started_by_a_fork_amid_calls_comes_to_life(world):
    """As Ray starts its servers: with something to do in the child before it becomes another program."""
    async with world.dial() as client:
        for _ in range(40):
            call = asyncio.ensure_future(client.unary(rpcs.DESCRIBE, m.Describe(run="r")))
            await asyncio.sleep(0)
            with subprocess.Popen([sys.executable, "-S", "-c", ""], preexec_fn=os.getpid) as program:
                await call
            assert program.returncode == 0
