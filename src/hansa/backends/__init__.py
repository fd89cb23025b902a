"""Backends: where a federation runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hansa.federation import Federation
    from hansa.run import Run


class Backend(Protocol):
    """Somewhere a federation can run."""

    def run(self, federation: Federation) -> Run:
        """Run it to its end."""
