"""Studies: simulate, run, watch, resume; and what their models say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

from hansa.cli.data import read_table, require_numbers
from hansa.cli.home import coordinator_home, writable
from hansa.cli.output import Json, Output
from hansa.errors import UnreachableError, UsageError, did_you_mean

if TYPE_CHECKING:
    from hansa.backends.local import Local
    from hansa.backends.remote import Remote
    from hansa.data.table import Table
    from hansa.federation import Federation
    from hansa.run import Run

RUNS = Path("hansa-runs")

Iid = Annotated[int, Parameter(show_default=False)]


class Dealt(NamedTuple):
    """A table, and the one way in which its rows become parties, as the command line said it."""

    data: str
    by: str
    iid: int
    shares: Sequence[float]
    encoding: str

    def parties(self, out: Output, federation: Federation) -> dict[str, Table]:
        """The parties' tables, each fit for the study.

        Raises:
            UsageError: if no way is said, or more than one, or if it gives too few parties.
            DataError: naming the column and the row that the study cannot use.
        """
        from hansa.data import partition

        if sum(map(bool, (self.by, self.iid, self.shares))) != 1:
            raise UsageError(
                "say in one way how rows become parties",
                remedy="--by COLUMN, or --iid PARTIES, or --shares 0.5 --shares 0.5",
            )
        table = read_table(self.data, self.encoding)
        if self.by:
            parties = partition.by_column(table, self.by)
        elif self.iid:
            parties = partition.iid(table, self.iid, federation.seed)
        else:
            named = {f"party-{i + 1}": share for i, share in enumerate(self.shares)}
            parties = partition.shares(table, named, federation.seed)
        self._require_enough(len(parties), federation)
        rest = table.drop(self.by) if self.by else table
        require_numbers(rest, federation)
        federation.task.labels(rest)
        target = federation.task.target
        out.say(partition.describe(parties, target if target in table.names else None))
        return parties

    def _require_enough(self, parties: int, federation: Federation) -> None:
        cohort = federation.cohort
        for name, needed in (("minimum", cohort.minimum), ("size", getattr(cohort, "size", 0))):
            if parties < needed:
                way = "--by" if self.by else "--iid" if self.iid else "--shares"
                more = "a column with more values" if self.by else "more parties"
                raise UsageError(
                    f"{way} gives {parties} {'party' if parties == 1 else 'parties'},"
                    f" and the study needs {needed}",
                    remedy=f"Say {way} with {more}, or lower cohort.{name} in the study.",
                )


def simulate(
    study: Path,
    /,
    *,
    data: str,
    by: str = "",
    iid: Iid = 0,
    shares: Sequence[float] = (),
    seed: int | None = None,
    compare: Annotated[bool, Parameter(negative="")] = False,
    encoding: str = "utf-8",
    output: Path = RUNS,
    json: Json = False,
) -> None:
    """Run a study on one machine, from one table that is dealt out to parties.

    Example::

        hansa simulate study.toml --data table.csv --by hospital

    Args:
        study: a study file, TOML or Python.
        data: the table: a CSV or Parquet file, or URL#SELECT ...
        by: the column that says to which party a row belongs.
        iid: instead: deal the rows out to so many parties by chance.
        shares: instead: deal them out in these shares, which add up to 1.
        seed: instead of the study's.
        compare: also train each party alone, and on all rows together.
        encoding: of a CSV file, such as gb18030.
        output: folder under which the run is kept.
    """
    from hansa import study as studies
    from hansa.backends.local import Local

    out = Output(json)
    federation = studies.load(study)
    if seed is not None:
        federation = federation.model_copy(update={"seed": seed})
    dealt = Dealt(data, by, iid, shares, encoding)
    parties = dealt.parties(out, federation)
    backend = partial(Local, parties, folder=writable(output, "--output"))
    run = _simulated(out, federation, backend, output)
    scored = _comparison(out, federation, parties, run) if compare else None
    _told(out, run, output / run.id, scored)


def run(
    study: Path, /, *, output: Path = RUNS, home: Path | None = None, json: Json = False
) -> None:
    """Run a study with the parties of the coordinator whose folder is here.

    Ctrl-C leaves the run going; `hansa watch` follows it again.

    Example::

        hansa run study.toml

    Args:
        study: a study file, TOML or Python; built-in parts only.
        output: folder under which the run is kept.
        home: folder of the coordinator; $HANSA_HOME/coordinator if not given.
    """
    from hansa import study as studies

    out = Output(json)
    federation = studies.load(study)
    _followed(out, federation.rounds, home, output, lambda remote: remote.run(federation))


def watch(
    name: str, /, *, output: Path = RUNS, home: Path | None = None, json: Json = False
) -> None:
    """Follow a run, from its first round to its last, and keep what it came to.

    Example::

        hansa watch 20260101-120000-tumours-a1b2c3

    Args:
        name: of the run; `hansa runs` lists them.
        output: folder under which the run is kept.
        home: folder of the coordinator; $HANSA_HOME/coordinator if not given.
    """
    out = Output(json)
    _followed(out, _rounds(home, name), home, output, lambda remote: remote.watch(name))


def resume(
    name: str,
    /,
    *,
    data: str = "",
    by: str = "",
    iid: Iid = 0,
    shares: Sequence[float] = (),
    encoding: str = "utf-8",
    study: Path | None = None,
    output: Path = RUNS,
    home: Path | None = None,
    json: Json = False,
) -> None:
    """Take up a run where it stopped: a deployed one by its name, a simulated one by its folder.

    Example::

        hansa resume 20260101-120000-tumours-a1b2c3

    Args:
        name: of a run of the coordinator, or the folder of a simulated run.
        data: of a simulated run: its table, as for `hansa simulate`.
        by: of a simulated run: the column that says to which party a row belongs.
        iid: of a simulated run: how many parties the rows were dealt out to by chance.
        shares: of a simulated run: the shares in which they were dealt out.
        encoding: of a CSV file, such as gb18030.
        study: of a simulated run with code: its study file.
        output: folder under which the run is kept.
        home: folder of the coordinator; $HANSA_HOME/coordinator if not given.
    """
    out = Output(json)
    if (Path(name) / "federation.json").exists():
        dealt = Dealt(data, by, iid, shares, encoding)
        _resume_simulated(out, Path(name), dealt, study)
    else:
        _followed(out, _rounds(home, name), home, output, lambda remote: remote.resume(name))


def _resume_simulated(out: Output, kept: Path, dealt: Dealt, study: Path | None) -> None:
    from hansa import study as studies
    from hansa.backends.local import Local
    from hansa.run import Run

    earlier = Run.load(kept)
    if earlier.status == "finished":
        raise UsageError(f"the run {earlier.id} is finished: there is nothing to resume")
    if earlier.events[0].body.get("backend") != "local":
        raise UsageError(
            f"{kept} holds a run among real parties, and their coordinator takes it up",
            remedy=f"Say hansa resume {earlier.id}",
        )
    if not dealt.data:
        raise UsageError(
            "a simulated run needs its table",
            remedy="Say --data FILE and --by, --iid or --shares, as `hansa simulate` was told.",
        )
    federation = studies.load(study) if study else earlier.federation
    if earlier.federation.seed != federation.seed:
        federation = federation.model_copy(update={"seed": earlier.federation.seed})
    parties = dealt.parties(out, federation)
    folder = writable(kept, "NAME").parent
    backend = partial(Local, parties, folder=folder, resume=earlier)
    ended = _simulated(out, federation, backend, folder)
    _told(out, ended, folder / ended.id, None)


def runs(*, home: Path | None = None, json: Json = False) -> None:
    """List the runs of the coordinator, and how they stand.

    Example::

        hansa runs

    Args:
        home: folder of the coordinator; $HANSA_HOME/coordinator if not given.
    """
    from hansa.cli.operator import call
    from hansa.wire import messages as m
    from hansa.wire.rpcs import RUNS as LIST

    out = Output(json)
    lines = call(home, LIST, m.RunsRequest()).runs
    if lines:
        rows = [(r.run, r.status, f"{r.round}/{r.rounds}", r.created[:19], r.reason) for r in lines]
        out.table(("run", "status", "round", "begun", "reason"), rows)
    else:
        out.say("No run yet: hansa run STUDY")
    out.finish(
        {
            "runs": [
                {
                    "run": r.run,
                    "name": r.name,
                    "status": r.status,
                    "round": r.round,
                    "rounds": r.rounds,
                    "created": r.created,
                    "reason": r.reason,
                }
                for r in lines
            ]
        }
    )


def _simulated(
    out: Output, federation: Federation, backend: Callable[..., Local], folder: Path
) -> Run:
    from hansa.cli.view import RoundsView

    with RoundsView(out, federation.rounds) as view:
        try:
            return federation.run(backend(follow=view))
        except KeyboardInterrupt:
            if view.run:
                out.say(
                    f"To go on: hansa resume {folder / view.run} --data ..., as it was dealt out"
                )
            raise


def _followed(
    out: Output, rounds: int, home: Path | None, output: Path, go: Callable[[Remote], Run]
) -> None:
    from hansa.backends.remote import Remote
    from hansa.cli.view import RoundsView

    with RoundsView(out, rounds) as view:
        remote = Remote(coordinator_home(home), folder=writable(output, "--output"), follow=view)
        try:
            ended = go(remote)
        except KeyboardInterrupt:
            if view.run:
                out.say(f"The run goes on without this command: hansa watch {view.run}")
            raise
        except UnreachableError as error:
            if view.run:
                error.remedy = f"The run goes on; to follow it again: hansa watch {view.run}"
            raise
    _told(out, ended, output / ended.id, None)


def _rounds(home: Path | None, name: str) -> int:
    """How many rounds a run of the coordinator has at most.

    Raises:
        UsageError: if there is no such run.
    """
    from hansa.cli.operator import call
    from hansa.wire import messages as m
    from hansa.wire.rpcs import RUNS as LIST

    rounds = {line.run: line.rounds for line in call(home, LIST, m.RunsRequest()).runs}
    if name not in rounds:
        remedy = did_you_mean(name, rounds, otherwise="`hansa runs` lists them")
        raise UsageError(f"there is no run {name!r}", remedy=remedy)
    return rounds[name]


def _comparison(
    out: Output, federation: Federation, parties: dict[str, Table], run: Run
) -> list[dict[str, Any]]:
    from hansa.comparison import compare

    scored = compare(federation, parties, run.model)
    names = list(scored[0].metrics)
    rows = [(s.name, s.rows, *(f"{s.metrics[n]:.4f}" for n in names)) for s in scored]
    out.table(("model", "rows", *names), rows, title="On the held-out rows of all parties")
    return [{"model": s.name, "rows": s.rows, "rate": s.rate, **s.metrics} for s in scored]


def _told(out: Output, run: Run, folder: Path, scored: list[dict[str, Any]] | None) -> None:
    """Where everything lies, and what to type next."""
    metrics = run.metrics()
    out.say(f"Model, metrics and events are in {folder}")
    out.say(f"Next: hansa predict {folder / 'model.safetensors'} --data FILE")
    out.finish(
        {
            "run": run.id,
            "status": run.status,
            "reason": run.reason,
            "federation": run.federation.hash,
            "rounds": run.progress.round if run.progress else 0,
            "metrics": metrics[-1] if metrics else {},
            "comparison": scored,
            "folder": folder,
            "model": folder / "model.safetensors",
        }
    )
