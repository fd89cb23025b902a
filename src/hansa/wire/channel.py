"""Mutually authenticated channels over grpc.aio: parties dial, the coordinator listens on one port.

Only hansa.wire imports grpc."""

import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from hansa.crypto.pki import SERVER_NAME, require_valid
from hansa.crypto.token import split_address
from hansa.errors import UnreachableError

_LOG = logging.getLogger(__name__)

Renewed = Callable[[], tuple[bytes, bytes] | None]

MESSAGE = (4 << 20) + (64 << 10)  # most bytes of one message: 4 MiB, and some slack for what surrounds them

_KEEPALIVE_MS = 20_000
_COMMON: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MESSAGE),
    ("grpc.max_send_message_length", MESSAGE),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


def client_channel(address: str, key_pem: bytes, certificate_pem: bytes, root_pem: bytes) -> grpc.aio.Channel:
    """A channel to the coordinator; it connects at the first call, and again after a loss.

    Args:
        address: ``host:port``.
        key_pem: private key of the caller.
        certificate_pem: its certificate.
        root_pem: the coordinator's authority, or :func:`~hansa.crypto.pki.trust_anchor` of its key.

    Raises UsageError: the address is not one; TrustError: the caller's own certificate has expired. (A server that
    refuses a certificate just closes the connection, so this is the place to say so.)."""
    host, port = split_address(address)
    require_valid(certificate_pem)
    options = [
        *_COMMON,
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.enable_http_proxy", int(not _loopback(host))),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # In spite of its name, how long one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", 10_000),
        # One connection for each channel: a new certificate must not find the old one's connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    credentials = grpc.ssl_channel_credentials(root_pem, key_pem, certificate_pem)
    return grpc.aio.secure_channel(_target(host, port), credentials, options=options)


async def serve(
    *services: grpc.GenericRpcHandler,
    host: str,
    port: int,
    key_pem: bytes,
    certificate_pem: bytes,
    roots_pem: bytes,
    renewed: Renewed | None = None,
) -> tuple[grpc.aio.Server, int]:
    """A started server, and the port that it listens on.

    Args:
        services: from :func:`~hansa.wire.service.handlers`.
        host: address to listen on, for example ``127.0.0.1``, ``0.0.0.0`` or ``::``.
        port: 0 for any free one.
        key_pem: the coordinator's private key.
        certificate_pem: its certificate, :meth:`~hansa.crypto.pki.Authority.server_certificate`.
        roots_pem: roots of the clients: the authority's and the lobby's, one after the other.
        renewed: called before each handshake, in a thread of gRPC's: a newer key and certificate,
            or None to go on with the last ones.

    Raises UnreachableError: the port is in use, or the address is not this machine's."""
    credentials = _credentials((key_pem, certificate_pem), roots_pem, renewed)
    options = [
        *_COMMON,
        # By default gRPC shares a port with whoever holds it, and each gets some of the calls.
        ("grpc.so_reuseport", 0),
        # By default it takes the keepalive pings of an idle party for an attack, and hangs up.
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 4),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_concurrent_streams", 100),  # of one connection
        ("grpc.http2.bdp_probe", 0),  # else a party's window grows to what its link holds, and the memory for it
        ("grpc.http2.lookahead_bytes", 4 << 20),
        ("grpc.experimental.tcp_max_read_buffer_size", 1 << 16),  # else it stays large: grpc/grpc#42194
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers(services)
    try:
        bound = server.add_secure_port(_target(host, port), credentials)
    except RuntimeError:
        raise _not_listening(host, port) from None
    await server.start()
    return server, bound


def _credentials(pair: tuple[bytes, bytes], roots_pem: bytes, renewed: Renewed | None) -> grpc.ServerCredentials:
    """Credentials that ask ``renewed`` for a newer key and certificate before each handshake. gRPC must hear None when
    there is none. To be given the same again, it replaces at each handshake what others are just using, and aborts
    (https://github.com/grpc/grpc/issues/36693, open)."""
    first = grpc.ssl_server_certificate_configuration([pair], roots_pem)

    def fetch() -> Any:  # its stub leaves out None
        try:
            newer = renewed() if renewed else None
        except Exception:
            # The last certificate is still the best answer to whoever is connecting.
            _LOG.exception("the coordinator's certificate could not be renewed")
            newer = None
        return grpc.ssl_server_certificate_configuration([newer], roots_pem) if newer else None

    return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=True)


def _target(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _not_listening(host: str, port: int) -> UnreachableError:
    """Why the server could not listen; gRPC itself does not say, so the system is asked."""
    where = _target(host, port)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((host, port))
    except PermissionError:
        return UnreachableError(f"this user may not listen on {where}", remedy="Choose a port above 1023 with --port.")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            remedy = "Is the host an address of this machine? 0.0.0.0 means all of them."
            return UnreachableError(f"cannot listen on {where}: {error.strerror}", remedy=remedy)
    remedy = "Choose another one with --port, or any free one with --port 0."
    return UnreachableError(f"port {port} on {host} is in use", remedy=remedy)
