"""A run as it happens: a table that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from hansa.cli.output import Output

if TYPE_CHECKING:
    from hansa.run import Event

SHOWN = 12
"""Rounds that the live table shows; the latest ones."""


class RoundsView:
    """Shows a run's events; use it in a ``with`` block and hand it to ``follow``.

    Args:
        out: where to.
        rounds: how many there are at most.
    """

    def __init__(self, out: Output, rounds: int) -> None:
        self._out, self._rounds = out, rounds
        self.run = ""
        """The name of the run, once its first event was seen."""
        self._rows: list[tuple[str, ...]] = []
        self._names: tuple[str, ...] = ()
        self._counted = 0
        self._prepared = False
        self._live = Live(console=out.console, auto_refresh=False) if out.live else None

    def __enter__(self) -> RoundsView:
        """Begin to draw."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last picture standing."""
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        body = event.body
        match event.kind:
            case "created":
                self.run = str(body["run"])
                self._say(f"Run {body['run']}: federation {str(body['federation'])[:16]}")
            case "resolved":
                setup = body["setup"]
                columns = len(setup["numbers"]) + len(setup["categories"])
                names = ", ".join(setup["parties"])
                self._say(f"{len(setup['parties'])} parties ({names}), {columns} feature columns")
            case "arrived":
                self._counted = len(body["counted"])
                if body["work"] == "moments" and not self._prepared:
                    self._prepared = True
                    self._say("Federated preprocessing: sums from each party, rows from none")
            case "metrics":
                self._metrics({k: v for k, v in body.items() if k != "round"}, body["round"])
            case "refused":
                self._say(
                    f"{_where(body)}: {body['party']} is not counted: {body['reason']}", "yellow"
                )
            case "waiting":
                left = f"; it is left out after {body['seconds']:g} s"
                where, party = _where(body), body["party"]
                self._say(f"{where}: waiting for {party}, which is not connected{left}", "yellow")
            case "returned":
                self._say(f"{body['party']} is connected again")
            case "restarted" | "resumed":
                self._say(f"The run goes on from exchange {body['version']}", "yellow")
            case "finished":
                self._say(f"Finished: {body['reason']}", "green")

    def _metrics(self, metrics: dict[str, float], number: int) -> None:
        self._names = tuple(metrics)
        values = tuple(f"{value:.4f}" for value in metrics.values())
        self._rows.append((f"{number}/{self._rounds}", str(self._counted), *values))
        if self._live is None:
            shown = ", ".join(f"{n} {v}" for n, v in zip(self._names, values, strict=True))
            self._out.say(f"round {number}/{self._rounds}: {shown} ({self._counted} parties)")
        else:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        drawn = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("round", "parties", *self._names):
            drawn.add_column(name, justify="right", style="cyan" if name == "round" else "")
        for row in self._rows[-SHOWN:]:
            drawn.add_row(*(Text(cell) for cell in row))
        return drawn

    def _say(self, text: str, style: str = "") -> None:
        self._out.say(text, style=style)


def _where(body: Mapping[str, Any]) -> str:
    return f"round {body['round']}" if body["round"] else "preprocessing"
