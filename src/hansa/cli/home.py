"""Where a coordinator and an agent keep what they must remember."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hansa.errors import UsageError


def hansa_home() -> Path:
    """``$HANSA_HOME``, or ``.hansa`` in the user's own folder."""
    chosen = os.environ.get("HANSA_HOME")
    return _absolute(Path(chosen)) if chosen else Path.home() / ".hansa"


def coordinator_home(option: Path | None = None) -> Path:
    """The folder of the coordinator: what ``--home`` says, or ``coordinator/`` in Hansa's home."""
    return _absolute(option) if option else hansa_home() / "coordinator"


def agent_home(option: Path | None = None) -> Path:
    """The folder of the agent: what ``--home`` says, or ``agent/`` in Hansa's home."""
    return _absolute(option) if option else hansa_home() / "agent"


def writable(folder: Path, option: str) -> Path:
    """The folder, made if it was not there; a UsageError if nothing can be written in it; the remedy names
    ``option``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written: {error.strerror}",
            remedy=f"Choose a folder of yours with {option}.",
        ) from None
    return folder


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()
