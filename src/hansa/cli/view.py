"""A run as it happens: a table that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hansa.cli.output import Output
from hansa.cli.plan import Pace, few, in_time

if TYPE_CHECKING:
    from hansa.methods.base import Setup
    from hansa.run import Event

SHOWN = 12  # rounds that the live table shows; the latest ones
WORTH_SAYING = 10.0  # seconds that a run must still take for a line to say so
SPREAD = frozenset({"p10", "p50", "p90", "worst_decile"})
"""How a metric's name ends that says how another one is spread over the parties."""


class RoundsView(ExitStack):
    """Shows the events of a run of so many rounds at most; use it in a ``with`` block and hand it to ``follow``.
    ``resolved`` is called once it is known who takes part, before the first exchange."""

    def __init__(self, out: Output, rounds: int, resolved: Callable[[Setup], None] | None = None) -> None:
        super().__init__()
        self._out, self._rounds, self._resolved, self._say = out, rounds, resolved, out.say
        self.run = ""  # the name of the run, once its first event was seen
        self._rows: list[tuple[str, ...]] = []
        self._names: tuple[str, ...] = ()
        self._latest: dict[str, float] = {}
        self._counted, self._prepared = 0, False
        self._pace = Pace(rounds)
        if out.live:
            self.enter_context(Live(get_renderable=self._picture, console=out.console))

    def __call__(self, event: Event) -> None:
        body = event.body
        match event.kind:
            case "created":
                self.run = str(body["run"])
                self._say(f"Run {body['run']}: federation {str(body['federation'])[:16]}")
            case "resolved":
                self._who(body["setup"])
            case "asked":
                self._pace.begin(event)
            case "arrived":
                self._counted = len(body["counted"])
                if body["work"] == "train":
                    self._arrived(event)
                if body["work"] == "moments" and not self._prepared:
                    self._prepared = True
                    self._say("Federated preprocessing: sums from each party, rows from none")
            case "metrics":
                self._metrics({k: v for k, v in body.items() if k != "round"}, body["round"])
            case "refused":
                said = f"{body['party']} is not counted: {body['reason']}"
                self._say(f"{_where(body)}: {said}", style="yellow")
            case "joined":
                self._say(f"{_where(body)}: {body['party']} takes part from now on")
            case "waiting":
                said = f"waiting for {body['party']}, which is not connected"
                left = f"it is left out after {body['seconds']:g} s"
                self._say(f"{_where(body)}: {said}; {left}", style="yellow")
            case "attempt":
                without = f"the next one is without {few(tuple(body['without']))}"
                self._say(f"{_where(body)}: a secure sum came to nothing; {without}", style="yellow")
            case "returned":
                self._say(f"{body['party']} is connected again")
            case "restarted" | "resumed":
                self._say(f"The run goes on from exchange {body['version']}", style="yellow")
            case "finished":
                self._spread()
                self._say(f"Finished: {body['reason']}", style="green")

    def _who(self, body: Mapping[str, Any]) -> None:
        from hansa.methods.base import Setup

        setup = Setup.from_json(body)
        columns = len(setup.numbers) + len(setup.categories) + len(setup.arrays)
        many, names = len(setup.parties), few(setup.parties)
        self._say(f"{many} parties ({names}), {columns} feature columns")
        if self._resolved is not None:
            self._resolved(setup)

    def _arrived(self, event: Event) -> None:
        first = not self._pace.done
        self._pace.round(event)
        if first and self._pace.left >= WORTH_SAYING:
            ahead = f"about {in_time(self._pace.left)} for the other {self._rounds - self._pace.at}"
            self._say(f"The first round took {in_time(self._pace.each)}: {ahead}")

    def _metrics(self, metrics: dict[str, float], number: int) -> None:
        self._latest = metrics
        self._names = tuple(name for name in metrics if not _of_parties(name))
        values = tuple(f"{metrics[name]:.4f}" for name in self._names)
        self._rows.append((f"{number}/{self._rounds}", str(self._counted), *values))
        if not self._out.live:
            shown = ", ".join(f"{n} {v}" for n, v in zip(self._names, values, strict=True))
            left = self._pace.left
            ahead = f"; {in_time(left)} left" if left >= WORTH_SAYING else ""
            self._say(f"round {number}/{self._rounds}: {shown} ({self._counted} parties{ahead})")

    def _picture(self) -> Group:
        """What the live table shows, several times a second."""
        if not self._rows and not self._pace.done:
            return Group()
        each, left = in_time(self._pace.each), in_time(self._pace.left)
        each = f", {each} a round, {left} left" if self._pace.each else ""
        drawn = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("round", "parties", *self._names):
            drawn.add_column(name, justify="right", style="cyan" if name == "round" else "")
        for row in self._rows[-SHOWN:]:
            drawn.add_row(*(Text(cell) for cell in row))
        return Group(drawn, Text(f"round {self._pace.at}/{self._rounds}{each}", style="dim"))

    def _spread(self) -> None:
        """How the last metrics are spread over the parties, if they say it."""
        spread: dict[str, dict[str, float]] = {}
        for name, value in self._latest.items():
            if _of_parties(name):
                metric, _, which = name.rpartition(".")
                spread.setdefault(metric, {})[which] = value
        if spread:
            measures = list(dict.fromkeys(name for row in spread.values() for name in row))
            rows = [(name, *map(row.get, measures)) for name, row in spread.items()]
            columns = ("metric", *(name.replace("_", " ") for name in measures))
            self._out.table(columns, rows, title="Spread over the parties, after the last round")


def _where(body: Mapping[str, Any]) -> str:
    return f"round {body['round']}" if body["round"] else "preprocessing"


def _of_parties(metric: str) -> bool:
    return metric.rpartition(".")[2] in SPREAD
