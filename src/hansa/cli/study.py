"""Studies among real parties: run, watch, resume, list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hansa.cli.dealt import Dealt
from hansa.cli.home import CoordinatorFolder, Kept, coordinator_home, writable
from hansa.cli.output import Json, Output
from hansa.cli.simulate import RUNS, resume_simulated, told
from hansa.errors import UnreachableError, UsageError, did_you_mean

if TYPE_CHECKING:
    from hansa.backends.remote import Remote
    from hansa.run import Run
    from hansa.wire.messages import RunLine


def run(study: Path, /, *, output: Kept = RUNS, home: CoordinatorFolder = None, json: Json = False) -> None:
    """Run a study with the parties of the coordinator whose folder is here.

    Ctrl-C leaves the run going; `hansa watch` follows it again.

    For example:

        hansa run study.toml

    Args:
        study: a study file, TOML or Python; built-in parts only."""
    from hansa import study as studies

    out, federation = Output(json), studies.load(study)
    _followed(out, federation.rounds, home, output, lambda remote: remote.run(federation))


def watch(name: str, /, *, output: Kept = RUNS, home: CoordinatorFolder = None, json: Json = False) -> None:
    """Follow a run, from its first round to its last, and keep what it came to.

    For example:

        hansa watch 20260101-120000-tumours-a1b2c3

    Args:
        name: of the run; `hansa runs` lists them."""
    _followed(Output(json), _rounds(home, name), home, output, lambda remote: remote.watch(name))


def resume(
    name: str,
    /,
    dealt: Dealt | None = None,
    *,
    study: Path | None = None,
    output: Kept = RUNS,
    home: CoordinatorFolder = None,
    json: Json = False,
) -> None:
    """Take up a run where it stopped: a deployed one by its name; a simulated one by its folder, with its table
    dealt out as it was.

    For example:

        hansa resume 20260101-120000-tumours-a1b2c3

    Args:
        name: of a run of the coordinator, or the folder of a simulated run.
        study: of a simulated run with code: its study file."""
    out = Output(json)
    if (Path(name) / "federation.json").exists():
        resume_simulated(out, Path(name), dealt, study)
    else:
        _followed(out, _rounds(home, name), home, output, lambda remote: remote.resume(name))


def runs(*, home: CoordinatorFolder = None, json: Json = False) -> None:
    """List the runs of the coordinator, and how they stand.

    For example:

        hansa runs"""
    out, lines = Output(json), _listed(home)
    if lines:
        rows = [(r.run, r.status, f"{r.round}/{r.rounds}", r.created[:19], r.reason) for r in lines]
        out.table(("run", "status", "round", "begun", "reason"), rows)
    else:
        out.say("No run yet: hansa run STUDY")
    names = ("run", "name", "status", "round", "rounds", "created", "reason")
    out.finish({"runs": [{name: getattr(line, name) for name in names} for line in lines]})


def _listed(home: Path | None) -> Sequence[RunLine]:
    """What the coordinator says of its runs."""
    from hansa.cli.operator import call
    from hansa.wire.rpcs import RUNS as LIST

    return call(home, LIST).runs


def _followed(out: Output, rounds: int, home: Path | None, output: Path, go: Callable[[Remote], Run]) -> None:
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
    told(out, output, ended)


def _rounds(home: Path | None, name: str) -> int:
    """How many rounds a run of the coordinator has at most."""
    rounds = {line.run: line.rounds for line in _listed(home)}
    if name not in rounds:
        remedy = did_you_mean(name, rounds, otherwise="`hansa runs` lists them")
        raise UsageError(f"there is no run {name!r}", remedy=remedy)
    return rounds[name]
