"""Where errors end: every way in which a command can stop becomes a message and an exit status."""

import errno
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence

from cyclopts import App, CycloptsError, UnusedCliTokensError
from cyclopts.help import DefaultFormatter, PanelSpec
from rich.box import Box

from hansa import __version__
from hansa.cli.commands import COMMANDS, GROUPS, SUMMARY
from hansa.cli.output import Output
from hansa.errors import HansaError, StoreError, UsageError, did_you_mean

DEFECT = 1
INTERRUPTED = 130
PIPE_CLOSED = 141
FRAMELESS = Box("    \n" * 8)
_FULL = "Free some space there, if it is full (`df -h`); if not, look at that disk (`smartctl -a`)"
_OURS = "Let the user who runs Hansa read and write there (`ls -ld` and `mount` say who may), or choose another folder"
_DISK = {"ENOSPC": _FULL, "EDQUOT": _FULL, "EIO": _FULL, "EROFS": _OURS, "EACCES": _OURS, "EPERM": _OURS}


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit status; never raises for what a command may raise."""
    output = Output(json="--json" in words)
    try:
        require_known(words)
        status = build_app()(list(words), exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        return _refuse(error, output)
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or _is_interruption(error):
            output.fail(HansaError("interrupted"), kind="Interrupted")
            return INTERRUPTED
        if isinstance(error, OSError) and on_disk(error):
            error = StoreError(f"{error.filename or 'a file'}: {error.strerror}", remedy=on_disk(error))
        if isinstance(error, HansaError):
            error.remedy = on_disk(error) or error.remedy
            output.fail(error)
            return error.exit_status
        return _confess(error, output)
    return status if isinstance(status, int) else 0


def require_known(words: Sequence[str]) -> None:
    """Refuse words that begin no command; cyclopts would import every command to suggest one; raises UsageError: no
    command has this name, or an option stands before the command."""
    first, *rest = words
    if first.startswith("-"):
        if first != "--version":
            raise UsageError(f"{first} stands before the command", remedy=f"Type hansa COMMAND {first}.")
        return
    if first in GROUPS:
        first = " ".join([first, *rest[:1]])
    names = [command.name for command in COMMANDS]
    if first not in names:
        known = names if " " in first else {*names, *GROUPS}
        remedy = did_you_mean(first, known, otherwise="`hansa --help` lists the commands.")
        raise UsageError(f"there is no command {first!r}", remedy=remedy)


def build_app() -> App:
    """The whole tree of commands; a command's module is imported only when it is run."""
    look = DefaultFormatter(panel_spec=PanelSpec(box=FRAMELESS, padding=0))
    app = App(
        name="hansa",
        help=SUMMARY,
        version=__version__,
        help_format="markdown",
        help_formatter=look,
        group_parameters="Options",
        suppress_keyboard_interrupt=False,
    )
    groups = {name: App(name=name, help=summary) for name, summary in GROUPS.items()}
    for group in groups.values():
        app.command(group)
    for command in COMMANDS:
        group_name, _, name = command.name.rpartition(" ")
        # Without help=: the page of a command is the docstring of its function.
        groups.get(group_name, app).command(f"hansa.cli.{command.target}", name=name)
    return app


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_interruption(error: Exception) -> bool:
    """Whether an error, or what it came from, is a Ctrl-C: DuckDB makes an error of its own of it."""
    found = [(type(one).__name__, str(one)) for one in _causes(error)]
    return any(one == ("RuntimeError", "Query interrupted") or one[0] == "InterruptException" for one in found)


def on_disk(error: Exception) -> str:
    """What helps against an error of a disk, the system's or one that SQLite tells; "" if it is none."""
    if isinstance(error, OSError):
        return _DISK.get(errno.errorcode.get(error.errno or 0, ""), "")
    names = [getattr(one, "sqlite_errorname", "") for one in _causes(error)]
    return _FULL if any(name.startswith(("SQLITE_FULL", "SQLITE_IOERR")) for name in names) else ""


def _refuse(error: CycloptsError, output: Output) -> int:
    chain = " ".join(("hansa", *(error.command_chain or ())))
    if isinstance(error, UnusedCliTokensError):
        message = f"nothing takes {' '.join(map(repr, error.unused_tokens or ()))}"
    else:
        message = str(error).rstrip(".")
    refusal = UsageError(message, remedy=f"`{chain} --help` shows what there is.")
    output.fail(refusal)
    return refusal.exit_status


def _confess(error: Exception, output: Output) -> int:
    if os.environ.get("HANSA_DEBUG"):
        traceback.print_exception(error)
        remedy = "Please report it."
    else:
        handle, name = tempfile.mkstemp(".txt", f"hansa-{time.strftime('%Y%m%d-%H%M%S')}-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
        careful = "read that file first, it may quote your data"
        remedy = f"Please report it with {name}; {careful}. HANSA_DEBUG=1 shows the traceback here."
    message = f"this is a defect of Hansa: {type(error).__name__}: {error}"
    output.fail(HansaError(message, remedy=remedy), kind="Defect")
    return DEFECT
