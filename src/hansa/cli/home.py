"""Where a coordinator and an agent keep what they must remember."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hansa.errors import UsageError

_ELSEWHERE = "folder of the {0}; $HANSA_HOME/{0} if not given."
CoordinatorFolder = Annotated[Path | None, Parameter(help=_ELSEWHERE.format("coordinator"))]
AgentFolder = Annotated[Path | None, Parameter(help=_ELSEWHERE.format("agent"))]
KeyFile = Annotated[Path | None, Parameter(help="storage keys, one a line: the first encrypts, each decrypts.")]
Kept = Annotated[Path, Parameter(help="folder under which the run is kept.")]
Encoding = Annotated[str, Parameter(help="of a CSV file, such as gb18030.")]
"""The types of parameters that several commands have, with what their pages say of them."""


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
    """The folder, made if it was not there; a UsageError, which names ``option``, if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror}"
        raise UsageError(what, remedy=f"Choose a folder of yours with {option}.") from None
    return folder


def not_written(output: Path, error: OSError) -> UsageError:
    """The error of a file that cannot be written."""
    remedy = "Choose an --output in a folder that exists and is yours."
    return UsageError(f"{output} cannot be written: {error.strerror}", remedy=remedy)


def _absolute(path: Path) -> Path:
    return path.expanduser().resolve()
