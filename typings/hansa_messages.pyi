"""Generated from messages.proto by tools/compile_messages.py. Do not edit."""

from collections.abc import Iterable
from typing import Literal

from google.protobuf.internal.containers import (
    RepeatedCompositeFieldContainer,
    RepeatedScalarFieldContainer,
)
from google.protobuf.message import Message

class JoinRequest(Message):
    secret: bytes
    csr: bytes
    protocol: int
    def __init__(
        self,
        *,
        secret: bytes = ...,
        csr: bytes = ...,
        protocol: int = ...,
    ) -> None: ...

class JoinReply(Message):
    certificate: bytes
    authority: bytes
    party: str
    federation: str
    def __init__(
        self,
        *,
        certificate: bytes = ...,
        authority: bytes = ...,
        party: str = ...,
        federation: str = ...,
    ) -> None: ...

class RenewRequest(Message):
    csr: bytes
    def __init__(
        self,
        *,
        csr: bytes = ...,
    ) -> None: ...

class RenewReply(Message):
    certificate: bytes
    def __init__(
        self,
        *,
        certificate: bytes = ...,
    ) -> None: ...

class Column(Message):
    name: str
    type: str
    def __init__(
        self,
        *,
        name: str = ...,
        type: str = ...,
    ) -> None: ...

class Offer(Message):
    dataset: str
    rows: int
    columns: RepeatedCompositeFieldContainer[Column]
    allow: RepeatedScalarFieldContainer[str]
    def __init__(
        self,
        *,
        dataset: str = ...,
        rows: int = ...,
        columns: Iterable[Column] = ...,
        allow: Iterable[str] = ...,
    ) -> None: ...

class Pending(Message):
    run: str
    version: int
    def __init__(
        self,
        *,
        run: str = ...,
        version: int = ...,
    ) -> None: ...

class Hello(Message):
    protocol: int
    version: str
    offers: RepeatedCompositeFieldContainer[Offer]
    pending: RepeatedCompositeFieldContainer[Pending]
    identity: bytes
    instance: bytes
    def __init__(
        self,
        *,
        protocol: int = ...,
        version: str = ...,
        offers: Iterable[Offer] = ...,
        pending: Iterable[Pending] = ...,
        identity: bytes = ...,
        instance: bytes = ...,
    ) -> None: ...

class Welcome(Message):
    coordinator: str
    addresses: RepeatedScalarFieldContainer[str]
    def __init__(
        self,
        *,
        coordinator: str = ...,
        addresses: Iterable[str] = ...,
    ) -> None: ...

class Work(Message):
    run: str
    work: str
    version: int
    round: int
    attempt: int
    federation: bytes
    ask: bytes
    digest: bytes
    size: int
    tensors: bytes
    def __init__(
        self,
        *,
        run: str = ...,
        work: str = ...,
        version: int = ...,
        round: int = ...,
        attempt: int = ...,
        federation: bytes = ...,
        ask: bytes = ...,
        digest: bytes = ...,
        size: int = ...,
        tensors: bytes = ...,
    ) -> None: ...

class Settled(Message):
    run: str
    version: int
    counted: bool
    reason: str
    def __init__(
        self,
        *,
        run: str = ...,
        version: int = ...,
        counted: bool = ...,
        reason: str = ...,
    ) -> None: ...

class Removed(Message):
    reason: str
    def __init__(
        self,
        *,
        reason: str = ...,
    ) -> None: ...

class Step(Message):
    run: str
    version: int
    attempt: int
    phase: int
    payload: bytes
    def __init__(
        self,
        *,
        run: str = ...,
        version: int = ...,
        attempt: int = ...,
        phase: int = ...,
        payload: bytes = ...,
    ) -> None: ...

class Notice(Message):
    welcome: Welcome
    settled: RepeatedCompositeFieldContainer[Settled]
    steps: RepeatedCompositeFieldContainer[Step]
    work: RepeatedCompositeFieldContainer[Work]
    removed: Removed
    def __init__(
        self,
        *,
        welcome: Welcome | None = ...,
        settled: Iterable[Settled] = ...,
        steps: Iterable[Step] = ...,
        work: Iterable[Work] = ...,
        removed: Removed | None = ...,
    ) -> None: ...

class Describe(Message):
    run: str
    def __init__(
        self,
        *,
        run: str = ...,
    ) -> None: ...

class Description(Message):
    federation: bytes
    setup: bytes
    def __init__(
        self,
        *,
        federation: bytes = ...,
        setup: bytes = ...,
    ) -> None: ...

class FetchRequest(Message):
    digest: bytes
    offset: int
    def __init__(
        self,
        *,
        digest: bytes = ...,
        offset: int = ...,
    ) -> None: ...

class Head(Message):
    run: str
    version: int
    attempt: int
    weight: float
    size: int
    digest: bytes
    data: bytes
    def __init__(
        self,
        *,
        run: str = ...,
        version: int = ...,
        attempt: int = ...,
        weight: float = ...,
        size: int = ...,
        digest: bytes = ...,
        data: bytes = ...,
    ) -> None: ...

class Failure(Message):
    run: str
    version: int
    attempt: int
    reason: str
    about: RepeatedScalarFieldContainer[str]
    def __init__(
        self,
        *,
        run: str = ...,
        version: int = ...,
        attempt: int = ...,
        reason: str = ...,
        about: Iterable[str] = ...,
    ) -> None: ...

class UploadPart(Message):
    head: Head
    failure: Failure
    step: Step
    def __init__(
        self,
        *,
        head: Head | None = ...,
        failure: Failure | None = ...,
        step: Step | None = ...,
    ) -> None: ...
    def WhichOneof(  # noqa: N802 (protobuf"s name)
        self,
        oneof_group: Literal["body"],
    ) -> Literal["head", "failure", "step"] | None: ...

class Resume(Message):
    offset: int
    def __init__(
        self,
        *,
        offset: int = ...,
    ) -> None: ...

class Receipt(Message):
    accepted: bool
    reason: str
    def __init__(
        self,
        *,
        accepted: bool = ...,
        reason: str = ...,
    ) -> None: ...

class UploadReply(Message):
    resume: Resume
    receipt: Receipt
    def __init__(
        self,
        *,
        resume: Resume | None = ...,
        receipt: Receipt | None = ...,
    ) -> None: ...
    def WhichOneof(  # noqa: N802 (protobuf"s name)
        self,
        oneof_group: Literal["body"],
    ) -> Literal["resume", "receipt"] | None: ...

class SubmitRequest(Message):
    federation: bytes
    def __init__(
        self,
        *,
        federation: bytes = ...,
    ) -> None: ...

class SubmitReply(Message):
    run: str
    def __init__(
        self,
        *,
        run: str = ...,
    ) -> None: ...

class RunsRequest(Message):
    def __init__(
        self,
    ) -> None: ...

class RunLine(Message):
    run: str
    name: str
    status: str
    round: int
    rounds: int
    created: str
    reason: str
    def __init__(
        self,
        *,
        run: str = ...,
        name: str = ...,
        status: str = ...,
        round: int = ...,
        rounds: int = ...,
        created: str = ...,
        reason: str = ...,
    ) -> None: ...

class RunsReply(Message):
    runs: RepeatedCompositeFieldContainer[RunLine]
    def __init__(
        self,
        *,
        runs: Iterable[RunLine] = ...,
    ) -> None: ...

class EventsRequest(Message):
    run: str
    after: int
    def __init__(
        self,
        *,
        run: str = ...,
        after: int = ...,
    ) -> None: ...

class EventLine(Message):
    seq: int
    at: str
    kind: str
    body: bytes
    def __init__(
        self,
        *,
        seq: int = ...,
        at: str = ...,
        kind: str = ...,
        body: bytes = ...,
    ) -> None: ...

class EventLines(Message):
    lines: RepeatedCompositeFieldContainer[EventLine]
    def __init__(
        self,
        *,
        lines: Iterable[EventLine] = ...,
    ) -> None: ...

class ResultRequest(Message):
    run: str
    def __init__(
        self,
        *,
        run: str = ...,
    ) -> None: ...

class ResultReply(Message):
    checkpoint: bytes
    size: int
    def __init__(
        self,
        *,
        checkpoint: bytes = ...,
        size: int = ...,
    ) -> None: ...

class InviteRequest(Message):
    party: str
    lifetime_seconds: int
    def __init__(
        self,
        *,
        party: str = ...,
        lifetime_seconds: int = ...,
    ) -> None: ...

class InviteReply(Message):
    token: str
    expires: str
    def __init__(
        self,
        *,
        token: str = ...,
        expires: str = ...,
    ) -> None: ...

class PartiesRequest(Message):
    def __init__(
        self,
    ) -> None: ...

class PartyLine(Message):
    name: str
    state: str
    connected: bool
    certificate_expires: str
    offers: RepeatedCompositeFieldContainer[Offer]
    def __init__(
        self,
        *,
        name: str = ...,
        state: str = ...,
        connected: bool = ...,
        certificate_expires: str = ...,
        offers: Iterable[Offer] = ...,
    ) -> None: ...

class PartiesReply(Message):
    parties: RepeatedCompositeFieldContainer[PartyLine]
    def __init__(
        self,
        *,
        parties: Iterable[PartyLine] = ...,
    ) -> None: ...

class RemoveRequest(Message):
    party: str
    reason: str
    def __init__(
        self,
        *,
        party: str = ...,
        reason: str = ...,
    ) -> None: ...

class RemoveReply(Message):
    def __init__(
        self,
    ) -> None: ...

class ResumeRequest(Message):
    run: str
    def __init__(
        self,
        *,
        run: str = ...,
    ) -> None: ...

class ResumeReply(Message):
    def __init__(
        self,
    ) -> None: ...

class StatusRequest(Message):
    def __init__(
        self,
    ) -> None: ...

class StatusReply(Message):
    name: str
    version: str
    address: str
    parties: int
    connected: int
    runs: int
    started: str
    epoch: int
    def __init__(
        self,
        *,
        name: str = ...,
        version: str = ...,
        address: str = ...,
        parties: int = ...,
        connected: int = ...,
        runs: int = ...,
        started: str = ...,
        epoch: int = ...,
    ) -> None: ...

class Problem(Message):
    kind: str
    message: str
    remedy: str
    party: str
    round: int
    field: str
    def __init__(
        self,
        *,
        kind: str = ...,
        message: str = ...,
        remedy: str = ...,
        party: str = ...,
        round: int = ...,
        field: str = ...,
    ) -> None: ...
