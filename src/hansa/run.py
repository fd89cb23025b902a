"""What happened: events, decisions, metrics, checkpoints, and the model at the end.

A run is its record. Whatever chance or timing decided is an event in it, so that it can be resumed, replayed and
read by console, command line and notebook alike."""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np

from hansa import keyed
from hansa.contribution import Array, Arrival, Ask, Json, Values, canonical
from hansa.data.source import write_parquet
from hansa.errors import HansaError, RunError, StoreError, UsageError
from hansa.federation import Federation
from hansa.files import write_whole
from hansa.inference import Estimate
from hansa.methods.base import Setup
from hansa.methods.course import Course, Progress
from hansa.model import Model
from hansa.privacy.guarantee import Guarantee

UNDER_WAY = "under way"  # the state of work that was begun and has not arrived
CHECKPOINT = "round-{}.safetensors"
Status = Literal["running", "finished", "failed", "stopped"]


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    seq: int  # its number in the run, from 1
    at: str  # when, ISO 8601 in UTC
    # ``created``, ``resolved``, ``joined``, ``asked``, ``arrived``, ``refused``, ``metrics``, ``finished``, ``failed``
    # and more; readers pass over kinds they do not know
    kind: str
    body: Mapping[str, Any]  # its facts

    def to_json(self) -> dict[str, Json]:
        """One line of ``events.jsonl``."""
        return {"seq": self.seq, "at": self.at, "kind": self.kind, "body": dict(self.body)}


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_id(name: str) -> str:
    """An identifier for a run: when, which study, and six characters of chance."""
    safe = "".join(c if c.isalnum() else "-" for c in name)[:40]
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{safe}-{secrets.token_hex(3)}"


def draw(federation: Federation, course: Course, ask: Ask) -> Ask:
    """The ask with its cohort: drawn for training rounds, everybody for sums."""
    setup, evaluation = course.setup, federation.evaluation
    if federation.cohort.open:  # the roster may have grown since this was asked
        among = ask.among if 0 < ask.among <= len(setup.parties) else len(setup.parties)
        setup, ask = replace(setup, parties=setup.parties[:among]), replace(ask, among=among)
    if ask.work == "train":
        return replace(ask, parties=federation.cohort.draw(setup, ask.round))
    if ask.work == "evaluate" and evaluation.central:
        return ask  # whoever simulates has the rows
    if ask.work == "evaluate" and evaluation.sample:
        size = min(evaluation.sample, len(setup.parties))
        random = keyed.generator(setup.seed, "evaluated", ask.round)
        chosen = random.choice(len(setup.parties), size=size, replace=False)
        return replace(ask, parties=tuple(setup.parties[i] for i in np.sort(chosen)))
    return replace(ask, parties=tuple(setup.parties))


def goal(federation: Federation, ask: Ask) -> int | None:
    """With how many answers an exchange closes; None if it waits for all, as for the sums of preprocessing."""
    return None if ask.work == "moments" else federation.pace.goal


def needed(federation: Federation, ask: Ask) -> int:
    """How many must be counted: no more than were asked, unless a claim counts on their shares of noise."""
    chain = federation.aggregation if ask.through == "update" else federation.statistics
    protects = chain.protects and ask.through != "plain"
    if protects and (ask.parties or ask.work == "train"):
        return federation.cohort.minimum
    return min(federation.cohort.minimum, len(ask.parties), goal(federation, ask) or len(ask.parties))


def too_few(federation: Federation, ask: Ask, counted: int, excluded: Mapping[str, str]) -> RunError | None:
    """The error of a round that counts fewer parties than the study needs, with every excluded one and why."""
    if counted >= needed(federation, ask):
        return None
    reasons = "; ".join(f"{party}: {reason}" for party, reason in sorted(excluded.items()))
    needs = f"the study needs {federation.cohort.minimum} ({reasons})"
    what = f"{counted} of {len(ask.parties)} contributions could be counted, and {needs}"
    return RunError(what, round=ask.round, remedy="Mend what the parties report, then `hansa resume` the run")


def asked(ask: Ask) -> dict[str, Json]:
    """The body of an ``asked`` event: the recorded decision who takes part."""
    said = {"parties": list(ask.parties), "ask": ask.digest, "bytes": ask.send.nbytes}
    return {**ask.place, **said, **({"among": ask.among} if ask.among else {})}


def arrived(arrival: Arrival) -> dict[str, Json]:
    """The body of an ``arrived`` event: the recorded decision who was counted."""
    total = arrival.total
    rare = {"buckets": [list(names) for names in total.buckets], "lags": dict(arrival.lags)}
    said = {"counted": list(total.parties), "excluded": dict(arrival.excluded)}
    return {**arrival.ask.place, **said, **{name: of for name, of in rare.items() if of}, **arrival.metrics}


@dataclass(frozen=True)
class Decision:
    """What was decided of one exchange: who was asked, who was not counted, and why, who was summed with whom, and
    who was counted, with how many rounds they were late, and how many took part in the run by then (`Ask`)."""

    parties: tuple[str, ...]
    excluded: Mapping[str, str] = field(default_factory=dict)
    buckets: tuple[tuple[str, ...], ...] = ()
    counted: tuple[str, ...] = ()
    lags: Mapping[str, int] = field(default_factory=dict)
    among: int = 0


def decided(run: "Run") -> dict[int, Decision]:
    """The decisions of a run by the number of the exchange, from its events: they fix its bits. An exchange that was
    repeated after a crash counts as it ended."""
    asks: dict[int, tuple[tuple[str, ...], int]] = {}
    made: dict[int, Decision] = {}
    for event in run.events:
        number = event.body.get("version", -1)
        if event.kind == "asked":
            asks[number] = tuple(event.body["parties"]), event.body.get("among", 0)
        elif event.kind == "arrived" and (of := asks.get(number)):
            dealt = tuple(map(tuple, event.body.get("buckets", ())))
            counted, lags = tuple(event.body["counted"]), event.body.get("lags", {})
            made[number] = Decision(of[0], dict(event.body["excluded"]), dealt, counted, lags, of[1])
    return made


@dataclass
class Run:
    """A run and its record: what was run, among whom, how it stands, why it ended, and what happened."""

    id: str
    federation: Federation
    setup: Setup | None = None
    status: Status = "running"
    reason: str = ""
    events: list[Event] = field(default_factory=list)
    progress: Progress | None = None  # the latest checkpoint
    memories: Mapping[str, Values] = field(default_factory=dict)  # what each simulated party remembers

    @property
    def parameters(self) -> Array:
        """The global model's parameters, ``[d]``."""
        return self._progress.parameters

    @property
    def guarantee(self) -> Guarantee:
        """What is protected, from whom, and what it costs; of a fork, what it was forked from counts as bare."""
        created = next((e.body for e in self.events if e.kind == "created"), {})
        return self.federation.guaranteed(self.setup, forked=created.get("forked", ""))

    @property
    def model(self) -> Model:
        """The global model with its preprocessing; raises RunError if the run has none yet."""
        progress = self._progress
        if self.setup is None:
            raise RunError("the run has no model yet")
        course = self.federation.course(self.setup)
        encoding, metrics = course.encoding(progress), dict(progress.metrics)
        facts = {"run": self.id, "federation": self.federation.hash, "rounds": progress.round, "metrics": metrics}
        facts |= course.method.facts(progress.states["train"], encoding)
        return Model(self.federation.task, encoding, progress.parameters, facts)

    def summary(self, level: float = 0.95) -> list[Estimate]:
        """The model's table of coefficients; see `hansa.Model.summary`."""
        return self.model.summary(level)

    @property
    def _progress(self) -> Progress:
        if self.progress is None or "parameters" not in self.progress.states["train"].values:
            raise RunError("the run has no model yet")
        return self.progress

    def metrics(self, form: Literal["rows", "pandas", "polars", "arrow"] = "rows") -> Any:
        """One row per evaluation: ``round`` and the task's metrics.

        An evaluation that was interrupted before its checkpoint is repeated on resume: the last one of a round counts.
        The form ``"rows"`` gives a list of dicts; the others need the library of that name."""
        measured = [dict(event.body) for event in self.events if event.kind == "metrics"]
        rows = list({row["round"]: row for row in measured}.values())
        if form == "rows":
            return rows
        if form not in ("pandas", "polars", "arrow"):
            raise UsageError(f"unknown form {form!r}", remedy="Known: rows, pandas, polars, arrow")
        name = "pyarrow" if form == "arrow" else form
        try:
            module = import_module(name)
        except ImportError:
            raise HansaError(f"{name} is not installed", remedy=f"pip install 'hansa[{form}]'") from None
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
        return (module.table if form == "arrow" else module.DataFrame)(columns)

    def save(self, folder: str | Path, *, keep: bool = False) -> Path:
        """Write model, metrics (Parquet), events (JSON lines), federation and checkpoint into a folder, which is made
        if it is not there, and returned. With ``keep`` the checkpoint of this round is kept when later ones are
        written, to fork from."""
        folder = Path(folder)
        write_whole(folder / "federation.json", self.federation.to_json())
        lines = b"".join(canonical(event.to_json()) + b"\n" for event in self.events)
        rows = self.metrics()
        if rows:
            write_parquet(folder / "metrics.parquet", {n: [row[n] for row in rows] for n in rows[0]})
        if self.progress is not None and self.setup is not None:
            packed = self.progress.pack(self.memories)
            write_whole(folder / "checkpoint.safetensors", packed)
            if keep:
                write_whole(folder / CHECKPOINT.format(self.progress.round), packed)
            self.model.save(folder / "model.safetensors")
        write_whole(folder / "events.jsonl", lines)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, round: int | None = None) -> Self:
        """Read what `save` wrote; as it was after this ``round``, to fork from, or with its latest checkpoint if None.
        Raises StoreError if the folder holds no run, or no checkpoint of that round."""
        folder = Path(folder)
        checkpoint = folder / "checkpoint.safetensors"
        if round is not None:
            checkpoint = folder / CHECKPOINT.format(round)
            kept = sorted(int(p.stem.split("-")[1]) for p in folder.glob(CHECKPOINT.format("*")))
            if round not in kept:
                remedy = f"There are {', '.join(map(str, kept)) or 'none'}; `keep` writes them"
                raise StoreError(f"{folder} keeps no checkpoint of round {round}", remedy=remedy)
        try:
            federation = Federation.from_json((folder / "federation.json").read_bytes())
            lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
            events = [Event(**json.loads(line)) for line in lines]
            run = cls(str(events[0].body["run"]), federation)
            for event in events:
                run.hear(event)
            if checkpoint.is_file():
                run.progress, run.memories = Progress.unpack(checkpoint.read_bytes())
        except (HansaError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise StoreError(f"{folder} holds no run of Hansa ({error})") from error
        return run

    def hear(self, event: Event, follow: Callable[[Event], None] | None = None) -> None:
        """Append an event, which may change status, reason and setup, and tell whoever follows."""
        self.events.append(event)
        if event.kind == "resolved":
            self.setup = Setup.from_json(event.body["setup"])
        if event.kind == "joined" and self.setup is not None:
            self.setup = replace(self.setup, parties=(*self.setup.parties, event.body["party"]))
        if event.kind in {"finished", "failed", "stopped"}:
            self.status, self.reason = cast(Status, event.kind), str(event.body.get("reason", ""))
        if event.kind == "resumed":
            self.status, self.reason = "running", ""
        if follow is not None:
            follow(event)
