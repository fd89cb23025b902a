"""Calls to the coordinator, as its operator makes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hansa.cli.home import coordinator_home

if TYPE_CHECKING:
    from hansa.wire.rpcs import Q, R, Rpc


def call(home: Path | None, rpc: Rpc[Q, R], *, timeout: float = 30, **request: Any) -> R:
    """One call to the coordinator whose folder is here, within ``timeout`` seconds; ``request`` says its fields; raises
    HansaError: what the coordinator raised, or UnreachableError if it is not there."""
    from hansa.backends.remote import Remote, complete

    async def ask() -> R:
        async with Remote(coordinator_home(home)).client() as client:
            return await client.unary(rpc, rpc.request(**request), timeout=timeout)

    return complete(ask())
