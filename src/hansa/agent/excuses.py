"""Which errors an agent tells the coordinator, in which words, and which are a reason to come back later."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hansa.errors import (
    ConsentError,
    ContributionError,
    HansaError,
    TrustError,
    UnreachableError,
)


@contextlib.contextmanager
def coordinators_own() -> Iterator[None]:
    """An error that the coordinator has with itself: a reason to come back later, not to end."""
    try:
        yield
    except (TrustError, UnreachableError):
        raise
    except HansaError as error:
        raise UnreachableError(f"the coordinator failed: {error.message}") from error


def excuse(error: HansaError) -> str:
    """What the coordinator is told when work could not be done: never a word of the data.

    An error about a table quotes cells, and one about a contribution its values; they are for the
    owner's own log.
    """
    if isinstance(error, ConsentError):
        return error.message
    if isinstance(error, ContributionError):
        return f"its {error.field!r} is not what was declared" if error.field else error.message
    return "its table cannot be used; the log of the agent there says why"
