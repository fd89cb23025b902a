"""What can be called, with which messages, by whom: the whole service as one table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from google.protobuf.message import Message

from hansa.crypto.pki import LOBBY, OPERATOR, PARTY
from hansa.wire import messages as m

SERVICE = "hansa.Hansa"
PROTOCOL = 1  # version of the protocol; the number in Hello and JoinRequest

PENDING = 100  # answers that a party may ask about at once; about the others when it comes back

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message | bytes)
Kind = Literal["unary", "server_stream", "bidi"]


@dataclass(frozen=True)
class Rpc(Generic[Q, R]):
    """One remote procedure: its name in `RPCS`, the classes of what the client sends and the server answers. Nobody but
    the roles that may call it is let through to the implementation."""

    name: str
    kind: Kind
    request: type[Q]
    reply: type[R]
    roles: frozenset[str]

    @property
    def path(self) -> str:
        """The HTTP/2 path."""
        return f"/{SERVICE}/{self.name}"

    @property
    def method(self) -> str:
        """The name of the method that implements it."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.name).lower()


_LOBBY, _PARTY, _OPERATOR = frozenset({LOBBY}), frozenset({PARTY}), frozenset({OPERATOR})
_MEMBERS = _PARTY | _OPERATOR

JOIN = Rpc("Join", "unary", m.JoinRequest, m.JoinReply, _LOBBY)
RENEW = Rpc("Renew", "unary", m.RenewRequest, m.RenewReply, _MEMBERS)

ATTEND = Rpc("Attend", "server_stream", m.Hello, m.Notice, _PARTY)
DESCRIBE = Rpc("Describe", "unary", m.Describe, m.Description, _MEMBERS)
FETCH = Rpc("Fetch", "server_stream", m.FetchRequest, bytes, _MEMBERS)
UPLOAD = Rpc("Upload", "bidi", m.UploadPart, m.UploadReply, _PARTY)

SUBMIT = Rpc("Submit", "unary", m.SubmitRequest, m.SubmitReply, _OPERATOR)
RUNS = Rpc("Runs", "unary", m.RunsRequest, m.RunsReply, _OPERATOR)
EVENTS = Rpc("Events", "server_stream", m.EventsRequest, m.EventLines, _OPERATOR)
RESULT = Rpc("Result", "unary", m.ResultRequest, m.ResultReply, _OPERATOR)
RESUME = Rpc("Resume", "unary", m.ResumeRequest, m.ResumeReply, _OPERATOR)
INVITE = Rpc("Invite", "unary", m.InviteRequest, m.InviteReply, _OPERATOR)
PARTIES = Rpc("Parties", "unary", m.PartiesRequest, m.PartiesReply, _OPERATOR)
REMOVE = Rpc("Remove", "unary", m.RemoveRequest, m.RemoveReply, _OPERATOR)
STATUS = Rpc("Status", "unary", m.StatusRequest, m.StatusReply, _OPERATOR)

RPCS: Mapping[str, Rpc[Any, Any]] = {rpc.name: rpc for rpc in list(vars().values()) if isinstance(rpc, Rpc)}
