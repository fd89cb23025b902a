"""Studies on one machine: simulate, also with other values; resume; and what the models say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from hansa.cli.dealt import Dealt
from hansa.cli.home import Kept, writable
from hansa.cli.output import Json, Output, describe
from hansa.errors import HansaError, UsageError, did_you_mean

if TYPE_CHECKING:
    from hansa.backends.local import Local
    from hansa.data.table import Table
    from hansa.federation import Federation
    from hansa.methods.base import Setup
    from hansa.run import Run

RUNS = Path("hansa-runs")
NO_FACTS: Mapping[str, Any] = {"comparison": None, "plan": None}
"""What only a simulation can say of a run: what federating was worth, and what the run was to take."""


def simulate(
    study: Path,
    /,
    dealt: Dealt,
    *,
    changes: Annotated[Sequence[str], Parameter(name="--set", negative="")] = (),
    sweep: Annotated[Sequence[str], Parameter(negative="")] = (),
    seed: int | None = None,
    compare: Annotated[bool, Parameter(negative="")] = False,
    keep: Annotated[bool, Parameter(negative="")] = False,
    fork: str = "",
    backend: str = "local",
    clock: Path | None = None,
    engine: Literal["stacked", "resident"] | None = None,
    device: str = "cpu",
    replay: Path | None = None,
    output: Kept = RUNS,
    json: Json = False,
) -> int:
    """Run a study on one machine, from one table that is dealt out to parties.

    For example:

        hansa simulate study.toml --data table.csv --by hospital
        hansa simulate study.toml --data table.csv --partition iid --parties 9 --set lr=0.1

    Args:
        study: a study file, TOML or Python.
        changes: KEY=VALUE, as if the study said so: --set method.rounds=50, or --set rounds=50.
            It may be given several times.
        sweep: KEY=VALUE,VALUE,...: one run for each value, and a table of the results at the end. Several make a grid.
        seed: instead of the study's.
        compare: also train each party alone, and on all rows together.
        keep: keep every checkpoint and not only the latest, to fork from its round.
        fork: begin with the state of another run, as FOLDER@ROUND, or FOLDER for its latest.
        backend: where the parties work: local, or ray or ray:HOST:PORT for a cluster (hansa[ray]).
        clock: a TOML file with the virtual clock: how long parties take, when they are there, and fail.
        engine: stacked or resident, instead of what is faster here.
        device: where PyTorch trains, such as cuda.
        replay: the folder of a run whose decisions are repeated."""
    from hansa import study as studies
    from hansa.backends.clock import Clock
    from hansa.run import Run
    from hansa.variation import grid, read_value, read_values, vary

    out, federation = Output(json), studies.load(study)
    said = {key: read_value(text) for key, text in _pairs("--set", changes).items()}
    if seed is not None:
        said["study.seed"] = seed
    federation = vary(federation, said)
    sweeps = {key: read_values(text) for key, text in _pairs("--sweep", sweep).items()}
    points = grid(sweeps)
    # All of them now, so that what is wrong with one is said before the first is run.
    varied = [vary(federation, point) for point in points]
    local = partial(
        _backend(backend),
        test=dealt.tested_on,
        keep=keep,
        fork=_forked(fork),
        engine=engine,
        device=device,
        clock=Clock.read(clock) if clock else None,
        replay=Run.load(replay) if replay else None,
    )
    bench = _Bench(out, dealt, local, output, compare)
    if sweeps:
        return bench.sweep(points, varied)
    told(out, output, *bench.run(federation))
    return 0


def _backend(said: str) -> Callable[..., Local]:
    kind, _, address = said.partition(":")
    if said == "local":
        from hansa.backends.local import Local

        return Local
    if kind == "ray":
        from hansa.backends.ray import Ray

        return partial(Ray, address or "auto")
    raise UsageError(f"unknown backend {said!r}", remedy=did_you_mean(kind, ("local", "ray")))


def resume_simulated(out: Output, kept: Path, dealt: Dealt | None, study: Path | None) -> None:
    """Take up a simulated run from the folder that it left."""
    from hansa import study as studies
    from hansa.backends.local import Local
    from hansa.run import Run

    earlier = Run.load(kept)
    if earlier.status == "finished":
        raise UsageError(f"the run {earlier.id} is finished: there is nothing to resume")
    if earlier.events[0].body.get("backend") not in ("local", "ray"):
        what = f"{kept} holds a run among real parties, and their coordinator takes it up"
        raise UsageError(what, remedy=f"Say hansa resume {earlier.id}")
    if dealt is None:
        remedy = "Say --data FILE and --by or --partition, as `hansa simulate` was told."
        raise UsageError("a simulated run needs its table", remedy=remedy)
    federation = earlier.federation
    if study:  # its values were kept with the run; its code was not
        loaded = studies.load(study)
        federation = federation.model_copy(update={"task": loaded.task, "bundle": loaded.bundle})
    local, output = partial(Local, test=dealt.tested_on, resume=earlier), writable(kept, "NAME").parent
    told(out, output, *_Bench(out, dealt, local, output).run(federation))


def told(out: Output, output: Path, run: Run, facts: Mapping[str, Any] = NO_FACTS) -> None:
    """Where everything lies, and what to type next."""
    folder, found = output / run.id, {"estimates": _estimates(out, run), **_columns(out, run)}
    out.say(f"Model, metrics and events are in {folder}")
    out.say(f"Next: hansa predict {folder / 'model.safetensors'} --data FILE")
    out.finish({**summary(run, output), **facts, **found})


def _estimates(out: Output, run: Run) -> list[dict[str, Any]] | None:
    """The table of coefficients, of a method that gives one."""
    found = run.model.facts.get("inference") if run.status == "finished" else None
    if not found:
        return None
    rows, linear = run.summary(), found["degrees"] is not None
    names = ("", "estimate", "std. error", "t" if linear else "z", "p", "2.5 %", "97.5 %")
    shown = [tuple(row) if linear else (*row, row.ratio) for row in rows]
    columns = names if linear else (*names, "exp(estimate)")
    out.table(columns, shown, title=f"From {found['rows']} complete rows, in the columns' units")
    if not found["converged"]:
        out.say("The estimates have not converged: raise method.rounds", style="yellow")
    return [{**row._asdict(), "ratio": None if linear else row.ratio} for row in rows]


def _columns(out: Output, run: Run) -> dict[str, Any]:
    """What is in the columns, from a method that counts it."""
    columns = run.model.facts.get("columns", {}) if run.status == "finished" else {}
    for name, of in columns.items():
        said, what = of.get("quantiles", of["counts"]), "quantiles" if "edges" in of else "rows"
        out.table([*said], [[*said.values()]], title=f"{name}: {what}, with noise")
    return {"columns": columns} if columns else {}


def rounds_to_target(run: Run) -> int | None:
    """The first round after which the study's stop target was reached; None if it was not, or there is none."""
    stop = run.federation.stop
    if stop is not None and stop.target is not None:
        for row in run.metrics():
            if not stop.better(stop.target, row[stop.metric], run.federation.task):
                return int(row["round"])
    return None


@dataclass
class _Bench:
    """Where studies are simulated, on the same table, and kept under ``output``."""

    out: Output
    dealt: Dealt
    local: Callable[..., Local]
    output: Path
    compare: bool = False

    def run(self, federation: Federation) -> tuple[Run, dict[str, Any]]:
        """The run, and what else is known of it."""
        from hansa.cli.plan import Plan
        from hansa.cli.view import RoundsView

        parties, facts = self.dealt.tables(self.out, federation), dict(NO_FACTS)

        def resolved(setup: Setup) -> None:
            plan = Plan.of(federation, setup, self.dealt.table.rows)
            facts["plan"] = plan._asdict()
            self.out.say(str(plan))
            if federation.aggregation.protects or federation.statistics.protects:
                self.out.say(str(federation.guaranteed(setup)))

        with RoundsView(self.out, federation.rounds, resolved) as view:
            backend = self.local(parties, folder=writable(self.output, "--output"), follow=view)
            try:
                run = federation.run(backend)
            except KeyboardInterrupt:
                if view.run:
                    again = f"hansa resume {self.output / view.run} --data ..., as it was dealt out"
                    self.out.say(f"To go on: {again}")
                raise
        reached = rounds_to_target(run)
        if reached is not None:
            self.out.say(f"The target was first reached after round {reached}", style="green")
        if self.compare:
            facts["comparison"] = compared(self.out, federation, parties, run, "On the held-out rows of all parties")
        return run, facts

    def sweep(self, points: Sequence[Mapping[str, Any]], varied: Sequence[Federation]) -> int:
        """One run after the other; one that fails does not keep the others from being run."""
        results: list[dict[str, Any]] = []
        failure: HansaError | None = None
        for number, (point, federation) in enumerate(zip(points, varied, strict=True), start=1):
            values = ", ".join(f"{key} = {value}" for key, value in point.items())
            self.out.say(f"{number}/{len(points)}: {values}", style="bold")
            try:
                run, facts = self.run(federation)
                told = {**summary(run, self.output), "comparison": facts["comparison"]}
            except HansaError as error:
                self.out.say(f"error: {error}", style="red")
                failure, told = failure or error, {"status": "failed", "reason": str(error)}
            results.append({"values": point, **told})
        _results(self.out, results, any(one.stop and one.stop.target is not None for one in varied))
        document: dict[str, Any] = {"runs": results}
        if failure:
            self.out.say("What failed is kept, too, and is said above.", style="yellow")
            document["error"] = describe(failure)
        self.out.finish(document)
        return failure.exit_status if failure else 0


def _results(out: Output, results: Sequence[Mapping[str, Any]], aims: bool) -> None:
    """The table of a sweep; ``aims`` says whether there is a target that may be reached."""
    measured = dict.fromkeys(name for result in results for name in result.get("metrics", ()))
    named = {"rounds": "rounds", **({"to target": "target_round"} if aims else {})}
    named |= {name: name for name in (*measured, "seconds", "run") if name != "round" and "." not in name}
    rows = []
    for result in results:
        told = {"run": result["status"], **result, **result.get("metrics", {})}
        rows.append((*result["values"].values(), *(told.get(key) for key in named.values())))
    columns = (*results[0]["values"], *named)
    out.table(columns, rows, title="Results, after the last round of each run")


def summary(run: Run, output: Path) -> dict[str, Any]:
    """A run as a document, with where it lies under the folder of runs."""
    from datetime import datetime

    metrics, folder = run.metrics(), output / run.id
    begun, ended = (datetime.fromisoformat(run.events[i].at) for i in (0, -1))
    rounds, seconds = run.progress.round if run.progress else 0, (ended - begun).total_seconds()
    return {
        "run": run.id,
        "status": run.status,
        "reason": run.reason,
        "federation": run.federation.hash,
        "rounds": rounds,
        "target_round": rounds_to_target(run),
        "seconds": seconds,
        "metrics": metrics[-1] if metrics else {},
        "folder": folder,
        "model": folder / "model.safetensors",
    }


def _forked(words: str) -> Run | None:
    """The run that ``--fork`` names, as it was after the round that it names."""
    from hansa.run import Run

    if not words:
        return None
    folder, at, round = words.rpartition("@")
    if at and not round.isdecimal():
        raise UsageError(f"--fork {words}: {round!r} is no round", remedy="Write FOLDER@ROUND")
    return Run.load(folder, round=int(round)) if at else Run.load(words)


def _pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE, each key once."""
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key.strip() or not equals or not text.strip():
            raise UsageError(f"{option} {word!r} is no KEY=VALUE", remedy=f"Write {option} method.rounds=50")
        if key.strip() in pairs:
            raise UsageError(f"{option} {key.strip()} is said twice", remedy="Say it once")
        pairs[key.strip()] = text.strip()
    return pairs


def compared(
    out: Output, federation: Federation, parties: Mapping[str, Table], run: Run, title: str
) -> list[dict[str, Any]]:
    """The table of what federating was worth; only where one may see all rows."""
    from hansa.comparison import compare

    scored = compare(federation, parties, run.model)
    names = list(scored[0].metrics)
    rows = [(s.name, s.rows, *(f"{s.metrics[n]:.4f}" for n in names)) for s in scored]
    out.table(("model", "rows", *names), rows, title=title)
    return [{"model": s.name, "rows": s.rows, "rate": s.rate, **s.metrics} for s in scored]
