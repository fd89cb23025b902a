"""The one way in which commands talk.

With ``--json`` a command prints exactly one JSON document on standard output, and everything else on standard error.
Without it standard output is for people: in colour on a terminal, plain elsewhere and under ``NO_COLOR``."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa.errors import HansaError
from hansa.text import legible

Json = Annotated[
    bool, Parameter(name="--json", negative="", help="one JSON document on standard output, chatter on standard error.")
]
"""The type of the parameter ``json`` that every command has."""

UNWATCHED_WIDTH = 120


class Output:
    """What a command says; with ``json`` one document on standard output, and chatter on standard error."""

    finished: ClassVar[bool] = False
    """Whether the running command has printed its document: it prints one, even if it then fails."""

    def __init__(self, json: bool = False) -> None:
        Output.finished, self.json = False, json
        self.console = _console(sys.stderr if json else sys.stdout)  # where chatter goes; for live views

    @property
    def live(self) -> bool:
        """True when somebody watches a terminal, so that a view may redraw itself."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def say(self, text: str, *, style: str = "") -> None:
        """One line for people; ``style`` is one of rich's, such as ``bold`` or ``green``. It is never broken: a command
        or a token must survive being copied from a narrow terminal."""
        self.console.print(Text(legible(text), style=style), highlight=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
        """A table for people; columns of numbers are aligned to the right."""
        rows = [tuple(row) for row in rows]
        if title:  # as a line of its own: rich would wrap it to the width of the table
            self.say(title, style="italic")
        drawn = Table(box=box.SIMPLE_HEAD)
        for position, column in enumerate(columns):
            numeric = bool(rows) and all(_is_number(row[position]) for row in rows)
            drawn.add_column(Text(legible(column)), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            drawn.add_row(*(Text(legible(_cell(value))) for value in row))
        self.console.print(drawn)

    def finish(self, document: Mapping[str, Any]) -> None:
        """Print the document of ``--json``; the last thing a command does. Silent without it."""
        if self.json:
            Output.finished = True
            print(encode(document), flush=True)

    def fail(self, error: HansaError, *, kind: str = "") -> None:
        """Say what went wrong and the way out, on standard error; as the document too."""
        console = _console(sys.stderr)
        parts = (("error", "bold red", error.said), ("help", "bold cyan", error.remedy))
        for label, style, text in parts:
            if text:
                console.print(Text.assemble((label, style), ": ", legible(text)), highlight=False, soft_wrap=True)
        if not Output.finished:
            self.finish({"error": describe(error, kind=kind)})


def describe(error: HansaError, *, kind: str = "") -> dict[str, object]:
    """An error as data; ``kind`` stands in for the name of its class."""
    said = {n: getattr(error, n) for n in ("message", "remedy", "party", "round", "field")}
    return {"kind": kind or type(error).__name__, **said}


def encode(document: Mapping[str, Any]) -> str:
    """A document as JSON: NumPy scalars and arrays as numbers and lists, NaN and Inf as null."""
    from pydantic_core import to_jsonable_python

    def other(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else str(value)

    plain = to_jsonable_python(document, inf_nan_mode="null", fallback=other)
    readable = (getattr(sys.stdout, "encoding", "") or "").lower().replace("-", "") == "utf8"
    return json.dumps(plain, indent=2, ensure_ascii=not readable, allow_nan=False)


def _console(file: Any) -> Console:
    watched = file.isatty() or "COLUMNS" in os.environ
    return Console(file=file, width=None if watched else UNWATCHED_WIDTH)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, ".4g") if isinstance(value, float) else str(value)
