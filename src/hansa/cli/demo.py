"""``hansa demo``: three hospitals, as separate programs, learn one model over mutual TLS."""

from __future__ import annotations

import json as json_text
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from hansa.cli.home import writable
from hansa.cli.output import Json, Output
from hansa.cli.programs import PATIENCE, Programs, interruptible
from hansa.cli.simulate import summary
from hansa.errors import UnreachableError

if TYPE_CHECKING:
    from hansa.data.table import Table
    from hansa.federation import Federation
    from hansa.run import Run


def demo(
    *,
    seed: int = 0,
    output: Path = Path("hansa-demo"),
    keep: Annotated[bool, Parameter(negative="")] = False,
    no_privacy: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Watch three hospitals, as separate programs, learn one diagnosis model on this machine.

    A coordinator and three agents start on free ports of the loopback; each hospital has its own folder and rows, joins
    with a one-time token and makes its own keys. No sum of a hospital's is seen, but only that of all three, with noise
    that hides each patient. Everything is stopped and cleaned up at the end, but for the results.

    For example:

        hansa demo

    Args:
        seed: of the partition, the batches and the initial weights.
        output: folder under which the results are kept.
        keep: leave the programs running, to try commands on them.
        no_privacy: learn without noise and secure sums."""
    from hansa import study as studies
    from hansa.backends.remote import Remote
    from hansa.cli.view import RoundsView
    from hansa.data import wisconsin

    out, hospitals = Output(json), wisconsin.hospitals(seed)
    with ExitStack() as stack:
        check = stack.enter_context(interruptible())
        stack.callback(_remove_if_empty, output)
        writable(output, "--output")
        programs = Programs(Path(tempfile.mkdtemp(prefix="hansa-demo-")), leash=not keep)
        stack.callback(programs.close)
        study = programs.folder / "study.toml"
        study.write_text(wisconsin.study(seed, not no_privacy), encoding="utf-8")
        federation, began = studies.load(study), time.monotonic()
        _up(out, programs, hospitals, () if no_privacy else ("--honest", "2", "--budget", "6"))
        out.say(f"All four programs are up after {time.monotonic() - began:.1f} s.")
        document: dict[str, Any] = {}
        if not no_privacy:
            _introduced(out, programs, hospitals)
            guarantee = federation.guaranteed(federation.resolve({n: t.schema() for n, t in hospitals.items()}))
            out.say("What holds for each patient (one row of one hospital's table), whatever the rows are:")
            out.say("\n".join(f"  {line}" for line in str(guarantee).splitlines()[:-1]))  # the last: simulated
            document["guarantee"] = guarantee.to_json()
        with programs.watched(), RoundsView(out, federation.rounds) as view:
            run = federation.run(Remote(programs.folder / "coordinator", follow=view))
        check()
        results = output / run.id
        results.mkdir(parents=True)
        unfinished = stack.enter_context(ExitStack())  # the results go again if what fills them fails
        unfinished.callback(shutil.rmtree, results, ignore_errors=True)
        _results(results, run, programs, hospitals, study)
        if not no_privacy:
            document["seen"] = _seen(out, results, hospitals, run)
        document["comparison"] = _table(out, federation, hospitals, run)
        document["left"] = _left(out, programs, hospitals)
        check()
        programs.kept = keep
        unfinished.pop_all()
    document |= summary(run, output)
    document["seconds"] = time.monotonic() - began
    _next(out, results, programs if keep else None)
    if keep:
        document |= {"home": programs.folder, "pids": [p.pid for p in programs.running.values()]}
    out.finish(document)


def _up(out: Output, programs: Programs, hospitals: Mapping[str, Table], rules: Sequence[str]) -> None:
    """Start everything and wait until all hospitals listen."""
    from hansa.cli.operator import call
    from hansa.data.source import write_csv
    from hansa.wire.rpcs import INVITE, PARTIES

    home = programs.folder / "coordinator"
    words = ("coordinator", "start", "--address", "127.0.0.1", "--port", "0", "--home", str(home))
    programs.start("coordinator", *words, "--name", "three hospitals")
    for name, table in hospitals.items():
        (programs.folder / name).mkdir()
        write_csv(programs.folder / name / "tumours.csv", table)
    address = programs.document("coordinator")["address"]
    out.say(f"The coordinator listens at {address}.")
    for name, table in hospitals.items():
        said = call(home, INVITE, party=name, lifetime_seconds=600)
        rows = programs.folder / name / "tumours.csv"
        offer = ("--data", f"tumours={rows}", "--allow", "logistic-regression", *rules)
        own = ("--home", str(programs.folder / name / "agent"))
        programs.start(name, "agent", "start", "--token", said.token, *offer, *own)
        out.say(f"{name} joins with a one-time token and keeps its {table.rows} rows.")
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        parties = call(home, PARTIES).parties
        if sum(party.connected for party in parties) == len(hospitals):
            return
        programs.check()
        time.sleep(0.05)
    raise UnreachableError(f"not all hospitals connected within {PATIENCE:g} s")


def _introduced(out: Output, programs: Programs, hospitals: Mapping[str, Table]) -> None:
    """What people do by telephone: each hospital hears the words of the others' identities, and confirms them."""
    from hansa.agent.offers import Offers

    said = {name: programs.document(name)["identity"] for name in hospitals}
    for name in hospitals:
        with closing(Offers(programs.folder / name / "agent")) as mine:
            for other in said.keys() - {name}:
                mine.confirm(other, said[other])
    out.say("The hospitals compare the words of their identities, as by telephone:")
    out.say("\n".join(f"  {name}: {words}" for name, words in said.items()))


def _seen(out: Output, results: Path, hospitals: Mapping[str, Table], run: Run) -> list[dict[str, Any]]:
    """What left one hospital, beside what would have left it without protection, in the same exchanges."""
    from hansa.comparison import bare
    from hansa.contribution import Values
    from hansa.party import Party

    name, setup, ended = next(iter(hospitals)), run.setup, run.progress
    assert setup
    assert ended
    course = bare(run.federation).course(setup)
    party, begun = Party(name, hospitals[name], course), course.begin()
    known = replace(begun, states={**begun.states, "moments": ended.states["moments"]})
    places = begun, replace(known, phase="train"), replace(ended, phase="evaluate")
    asks = [course.ask(place) for place in places]
    sums, first, scores = (party.answer(ask, Values()).contribution.values for ask in asks if ask)
    record = map(json_text.loads, (results / name / "left.jsonl").read_text("utf-8").splitlines())
    masked = [line["first"]["masked"] for line in record if "first" in line]
    seen = (
        ("patients to learn from", sums["rows"], masked[0][0]),
        (f"update of {setup.numbers[0]}, round 1", first["update"][0], masked[1][0]),
        (f"update of {setup.numbers[1]}, round 1", first["update"][1], masked[1][1]),
        ("patients held out", scores["rows"], masked[-1][0]),
        ("diagnoses that are right", scores["correct"], masked[-1][1]),
    )
    rows = [(what, f"{float(plain):.6g}", str(hidden)) for what, plain, hidden in seen]
    out.say("")
    title = f"What the coordinator saw of {name}: numbers under masks, which only cancel in the sum of all three"
    out.table(("of this hospital", "without protection", "with protection"), rows, title=title)
    return [{"what": what, "without": float(plain), "with": hidden} for what, plain, hidden in seen]


def _results(folder: Path, run: Run, programs: Programs, hospitals: Mapping[str, Table], study: Path) -> None:
    """What stays: the run, the study, and from each hospital its rows and its record."""
    run.save(folder)
    shutil.copy(study, folder / "study.toml")
    for name in hospitals:
        own = folder / name
        own.mkdir()
        shutil.copy(programs.folder / name / "tumours.csv", own / "tumours.csv")
        shutil.copy(programs.folder / name / "agent" / "left.jsonl", own / "left.jsonl")


def _table(out: Output, federation: Federation, hospitals: Mapping[str, Table], run: Run) -> list[dict[str, Any]]:
    """What federating was worth; only a demo may see all rows in one place."""
    from hansa.comparison import compare

    scored, rows = compare(federation, hospitals, run.model), []
    for s in scored:
        what = f"{s.name} alone" if s.name in hospitals else s.name
        shown = (f"{s.metrics[n]:.4f}" for n in ("accuracy", "auc", "loss"))
        rows.append((what, s.rows, *shown))
    out.say("")
    columns = ("model", "rows it learnt from", "accuracy", "AUC", "log loss")
    out.table(columns, rows, title="What it was worth, on the held-out rows of all hospitals, counted without noise")
    return [{"model": s.name, "rows": s.rows, "rate": s.rate, **s.metrics} for s in scored]


def _left(out: Output, programs: Programs, hospitals: Mapping[str, Table]) -> list[dict[str, Any]]:
    """A summary of the record of what left each hospital, and of its ledger."""
    from hansa.agent.offers import Offers

    lines = []
    for name in hospitals:
        home = programs.folder / name / "agent"
        with closing(Offers(home)) as offers:
            ledger = offers.privacy()
        record = (home / "left.jsonl").read_text(encoding="utf-8").splitlines()
        messages = [json_text.loads(line) for line in record]
        fields = sorted({f for m in messages if m["call"] == "Upload" for f in m["fields"]})
        size = sum(message["bytes"] for message in messages)
        lines.append({"party": name, "messages": len(messages), "bytes": size, "fields": fields, **ledger})
    said = ("party", "messages", "bytes", "answers")
    spent = [f"{s['spent']:.3f}" if s["spent"] < math.inf else "no bound" for s in lines]
    rows = [(*(s[key] for key in said), cost, s["budget"]) for s, cost in zip(lines, spent, strict=True)]
    title = "What left each hospital, sums and never a row; and by its ledger, what that may tell of a patient"
    out.table(("hospital", "messages", "bytes", "answers", "epsilon", "of"), rows, title=title)
    fields = sorted({field for s in lines for field in s["fields"]})
    out.say(f"The fields in them: {', '.join(fields)}")
    out.say("")
    return lines


def _next(out: Output, results: Path, programs: Programs | None) -> None:
    out.say(f"The model   {results / 'model.safetensors'}")
    out.say(f"The metrics {results / 'metrics.parquet'}")
    out.say(f"The events  {results / 'events.jsonl'}")
    out.say(f"What left   {results / 'HOSPITAL' / 'left.jsonl'}")
    out.say("")
    if programs is not None:
        home = programs.folder / "coordinator"
        pids = " ".join(str(process.pid) for process in programs.running.values())
        out.say("The programs are still running. Try:")
        out.say(f"  {_hansa()} party list --home {home}")
        out.say(f"  {_hansa()} run {results / 'study.toml'} --home {home}")
        out.say(f"Stop them and remove their folder:  kill {pids}; rm -r {programs.folder}")
        return
    rows = results / "north" / "tumours.csv"
    out.say("Next:")
    out.say(f"  {_hansa()} predict {results / 'model.safetensors'} --data {rows}")
    out.say(f"  {_hansa()} new STUDY, and docs/own-federation.md: the same with your own data")


def _hansa() -> str:
    """How this command is typed here: `make demo` does not put it on the path."""
    script = Path(sys.argv[0])
    if shutil.which("hansa") or script.stem != "hansa":
        return "hansa"
    with suppress(ValueError):
        return str(script.absolute().relative_to(Path.cwd()))
    return str(script)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # runs are kept there
        folder.rmdir()
