"""Errors across the wire: a HansaError becomes a gRPC status, and the same HansaError again."""

import logging
import re
import time
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from hansa import errors
from hansa.errors import HansaError, TrustError, UnreachableError
from hansa.wire.messages import Problem

_LOG = logging.getLogger(__name__)
_TRAILER = "hansa-problem-bin"
_ROOM = {"message": 600, "remedy": 300, "party": 100, "field": 100}
"""Characters of each that fit into metadata: they have room for 8 KiB, in any script."""

_CODES: dict[type[HansaError], grpc.StatusCode] = {
    errors.UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.StudyError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ContributionError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DataError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ConsentError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TrustError: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnreachableError: grpc.StatusCode.UNAVAILABLE,
    errors.RunError: grpc.StatusCode.ABORTED,
    errors.StoreError: grpc.StatusCode.INTERNAL,
}

# What BoringSSL says when it does not accept the server's certificate. A server that does not take
# ours just closes the connection (TLS 1.3 tells the client too late): that reads as unreachable.
_NOT_TRUSTED = re.compile("(?i)CERTIFICATE_VERIFY_FAILED|BAD_SIGNATURE|signature failure|peer certificate|hostname")
_OUTSIDE = re.compile("certificate (is not yet valid|has expired)")


async def refuse(context: grpc.aio.ServicerContext[bytes, bytes], method: str, error: Exception) -> NoReturn:
    """End a call with ``error``; what is no HansaError is logged here and not told to strangers."""
    if not isinstance(error, HansaError):
        _LOG.error("%s failed", method, exc_info=error)
        error = HansaError("the coordinator failed", remedy="Its log says why.")
    codes = (_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    said: dict[str, str] = {name: getattr(error, name)[:most] for name, most in _ROOM.items()}
    known = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    trailer = ((_TRAILER, Problem(kind=known, round=error.round or 0, **said).SerializeToString()),)
    await context.abort(next(codes, grpc.StatusCode.INTERNAL), error.message[:100], trailer)


def from_status(error: grpc.aio.AioRpcError) -> HansaError:
    """The HansaError that a failed call means."""
    for key, value in error.trailing_metadata() or ():
        if key == _TRAILER and isinstance(value, bytes):
            try:
                return _rebuilt(Problem.FromString(value))
            except DecodeError:
                break
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and (when := _OUTSIDE.search(details)):
        at = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        what = f"by this machine's clock, {at} UTC, the coordinator's {when[0]}"
        return UnreachableError(what, remedy="Set the clock that is wrong, here or there: timedatectl set-ntp true")
    if code is grpc.StatusCode.UNAVAILABLE and _NOT_TRUSTED.search(details):
        remedy = "Check the address, or join with a token of this coordinator."
        return TrustError("the coordinator at this address is not the one that was joined", remedy=remedy)
    if code is grpc.StatusCode.UNAVAILABLE and "WRONG_VERSION_NUMBER" in details:
        return UnreachableError("there is no coordinator of Hansa's at this address")
    if code is grpc.StatusCode.UNAVAILABLE:
        # The last reason in gRPC's account of a failed connection.
        last = details.rpartition("last error: ")[2].rpartition(": ")[2]
        remedy = "Is it running, and does it accept this machine's certificate and clock? `hansa doctor` asks"
        return UnreachableError(f"the coordinator cannot be reached ({last or 'no reason given'})", remedy=remedy)
    if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return UnreachableError("the coordinator did not answer in time")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return TrustError(f"the coordinator refused: {details}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.ContributionError(f"a message is too large: {details}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UnreachableError("the coordinator does not know this call", remedy="Use the same version of Hansa.")
    return HansaError(f"the coordinator failed ({code.name}: {details})")


def _rebuilt(problem: Problem) -> HansaError:
    # Only names of this tree: the other side cannot choose any other class.
    named = getattr(errors, problem.kind, None)
    kind = named if isinstance(named, type) and issubclass(named, HansaError) else HansaError
    said: Any = {name: getattr(problem, name) for name in _ROOM}
    return kind(round=problem.round or None, **said)
