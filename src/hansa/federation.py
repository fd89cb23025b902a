"""The frozen whole: what is learnt, how, by whom, through which pipeline."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field as Limits

from hansa.aggregation.ring import SecureSum
from hansa.aggregation.signal import Among, Buckets, Schedule, Signal
from hansa.aggregation.stage import NO_STAGES, Aggregation, Reducer
from hansa.cohort import All, AnyCohort
from hansa.contribution import canonical
from hansa.data.contract import TO_NUMBERS, Contract
from hansa.data.table import ColumnSchema
from hansa.errors import ConsentError, DataError, PipelineError, PrivacyError, StudyError
from hansa.methods.base import AnyMethod, Setup, UpdateMethod
from hansa.methods.course import Course, Stop
from hansa.methods.evaluate import Evaluate
from hansa.methods.fedavg import FedAvg
from hansa.methods.fedbuff import FedBuff
from hansa.methods.moments import Moments
from hansa.part import Part, Written, reading
from hansa.privacy.claim import Adversary, Privacy
from hansa.privacy.guarantee import Guarantee, Release, guarantee
from hansa.privacy.noise import derived
from hansa.secure.terms import Rules
from hansa.task import BUILT_IN, WITH_CODE, AnyTask, counted

if TYPE_CHECKING:
    from hansa.backends import Backend
    from hansa.run import Run


_ROWS = Signal((counted("rows", example=1.0),), weights="equal")


def deployed(federation: Federation, setup: Setup, secret: bytes, run: str) -> Course:
    """A run between machines, with noise from a key of this one's own; raises PrivacyError if noise has no key."""
    if secret:
        return federation.course(setup, derived(secret, "run", run))
    if federation.noised:
        remedy = "Run an agent and a coordinator from their own folders, which keep one"
        raise PrivacyError("there is no key for the noise, and the study's seed is public", remedy=remedy)
    return federation.course(setup)


class BundledFile(Written):
    """A file that belongs to a study, by its content."""

    path: str  # relative to the study file, with forward slashes
    size: int  # bytes
    sha256: str

    @classmethod
    def of(cls, folder: Path, path: str) -> BundledFile:
        """Read the file; a StudyError if it is not there."""
        try:
            content = (folder / path).read_bytes()
        except OSError as error:
            raise StudyError(f"the study's file {folder / path} cannot be read: {error}") from None
        return cls(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


class Federation(Part):
    """One definition, three ways to run it.

    Args:
        name: of the study.
        dataset: the name under which each party offers its table; the study's name if empty.
        task: what is learnt.
        method: the algorithm.
        rounds: training rounds at most.
        stop: when to stop before.
        aggregation: stages between a party's update and the server.
        cohort: who takes part in a round.
        preprocessing: federated standardisation before round 1.
        evaluation: which rows are held out, and how often the model is scored on them.
        contract: what each party's table must be.
        statistics: stages between the sums of preprocessing and evaluation and the coordinator.
        privacy: what a guarantee speaks of, and what it may cost.
        adversary: against whom.
        seed: of all public randomness.
        bundle: the study's files, by content. A federation with code names them here."""

    name: Annotated[str, Limits(min_length=1)] = "study"
    dataset: str = ""
    task: AnyTask
    method: AnyMethod = FedAvg()
    rounds: Annotated[int, Limits(ge=1)] = 30
    stop: Stop | None = None
    aggregation: Aggregation = Aggregation()
    cohort: AnyCohort = All()
    preprocessing: Moments = Moments()
    evaluation: Evaluate = Evaluate()
    contract: Contract = Contract()
    statistics: Aggregation = Aggregation()
    privacy: Privacy = Privacy()
    adversary: Adversary = Adversary()
    seed: int = 0
    bundle: tuple[BundledFile, ...] = ()

    def __init__(self, **values: Any) -> None:
        with reading("federation"):
            super().__init__(**values)

    def model_post_init(self, context: Any) -> None:
        """Refuse (StudyError, PipelineError) what cannot hold, when it is built."""
        if not self.dataset:
            object.__setattr__(self, "dataset", self.name)
        self.method.require(self.task)
        pace, kind = self.pace, self.method.kind
        if kind == "fedbuff" and self.cohort.goal:
            raise StudyError("cohort.goal: the rounds of fedbuff close with its buffer", remedy="Set method.buffer")
        if (clause := "late" if pace.late else "open" * pace.open) and not isinstance(self.method, UpdateMethod):
            what = f"cohort.{clause}: {kind} adds up sums at the same parameters, of the same parties in one round"
            raise StudyError(what, remedy=f"Leave cohort.{clause} out, or choose a method with updates")
        claims = self.aggregation.protects or self.statistics.protects or type(self.cohort) is not All
        if pace.open and (self.rules(1) or (self.noised and claims)):
            what = "cohort.open: what noise, samples and secure sums hide is reckoned for the parties of the beginning"
            raise PipelineError(what, remedy="Leave it out; dp-sgd and dp-adam go with it where the cohort is all")
        if self.method.exact and (self.aggregation.stages or type(self.cohort) is not All or pace.goal):
            without = "aggregation stage" if self.aggregation.stages else "cohort but all of them"
            what = f"the method {kind} needs the exact sums of all parties, and so takes no {without}"
            raise PipelineError(what, remedy="Leave [aggregation] and [cohort] out, or choose another method")
        counts = replace(_ROWS, privacy=self.privacy)
        if self.method.statistics and not self.statistics.bind(counts)[-1].noise:  # a sum alone hides no row
            what = f"the method {self.method.kind} counts rows in cells that may hold one, and nothing hides them"
            raise PipelineError(what, remedy="Put noise into [statistics], such as local-gaussian")
        if self.statistics.stages and not self.evaluation.central and self.evaluation.due(self.rounds, last=True):
            tallies = self.evaluation.fields(self.task, self.evaluation.own)
            self.statistics.bind(Signal(tallies, weights="equal", privacy=self.privacy))
            if self.statistics.protects and (self.evaluation.sample or math.inf) < self.cohort.minimum:
                said = "evaluation.sample is below cohort.minimum, on whose noise the guarantee counts"
                raise StudyError(said, remedy="Raise evaluation.sample, or lower cohort.minimum")
        if isinstance(self.method, UpdateMethod):
            self.aggregation.bind(Signal(self.method.declared(1), weights=self.method.weights, privacy=self.privacy))
            for stage in self.aggregation.stages:
                if stage.whole_rounds and pace.late:
                    why = "fedbuff has none" if kind == "fedbuff" else "cohort.late mixes them"
                    remedy = f"Leave {stage.kind} out, or use another method and no cohort.late"
                    raise PipelineError(f"{stage.kind} goes by rounds, and {why}", remedy=remedy)
                if isinstance(stage, Reducer) and not self.method.reducible:
                    why = f"{kind}, which scales the update by a mean of its own"
                    what = f"{stage.kind} would not bound what one party does to {why}"
                    raise PipelineError(what, remedy=f"Leave {stage.kind} out, or use another method")
        if (pace.goal or pace.late) and self.rules(1):
            what = "whoever is quick counts by cohort.goal and cohort.late, and in a secure sum who signed its set"
            raise PipelineError(what, remedy="Leave these out: cohort.deadline and the threshold say who is needed")

    @property
    def pace(self) -> All:
        """The cohort with its goal and what becomes of late answers; of FedBuff, as its buffer and staleness say."""
        if not isinstance(method := self.method, FedBuff):
            return self.cohort
        own = {"goal": method.buffer, "late": self.cohort.late or self.rounds, "staleness": method.staleness}
        return self.cohort.model_copy(update=own)

    def to_json(self) -> bytes:
        """The canonical form: the same federation, the same bytes."""
        return canonical(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, data: bytes | str) -> Federation:
        """The inverse of `to_json`; a StudyError if it is not a federation."""
        try:
            body = json.loads(data)
        except ValueError as error:
            raise StudyError(f"the federation is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise StudyError("the federation is not a JSON object")
        return cls(**body)

    @property
    def hash(self) -> str:
        """SHA-256 over the canonical form, which names every byte of every bundled file."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def has_code(self) -> bool:
        """Whether running it means running its author's code."""
        return self.task.kind in WITH_CODE or bool(self.bundle)

    @property
    def noised(self) -> bool:
        """Whether anything in it is there to hide something."""
        return self.aggregation.protects or self.statistics.protects or bool(self.method.noise(self.privacy))

    def require_no_code(self) -> None:
        """Refuse a study with code, or for simulation only, as every agent does. Raises ConsentError if running it
        means running its author's code; StudyError if its evaluation is central: only a simulation has the table."""
        if self.evaluation.central:
            remedy = "Leave evaluation.central out, or `hansa simulate`"
            raise StudyError("evaluation.central is of a test table, which only a simulation has", remedy=remedy)
        if self.has_code or self.task.kind not in BUILT_IN:
            remedy = f"Use a built-in task kind ({', '.join(BUILT_IN)}), or `hansa simulate`"
            raise ConsentError("the study brings code, and agents run built-in task kinds only", remedy=remedy)

    def rules(self, parties: int, buckets: Buckets | None = None) -> Rules | None:
        """What each of so many parties holds a secure sum to: the study's adversary, the largest of its thresholds, and
        the minimum, on whose noise its guarantee counts; of a bucket's sum, its own one. None without secure sums."""
        chains = (*self.aggregation.stages, *self.statistics.stages)
        thresholds = [stage.threshold for stage in chains if isinstance(stage, SecureSum)]
        if not thresholds:
            return None
        cohort, colluding = self.cohort, self.adversary.colluding
        least = max(*thresholds, 0.0, cohort.minimum / max(1, cohort.most(parties)))
        curious, honest = self.adversary.coordinator != "malicious", max(1, cohort.minimum - colluding - 1)
        rules = Rules(colluding, max(0.0, 1 - least), "curious" if curious else "malicious", honest)
        return buckets.rules(rules) if buckets else rules

    def resolve(self, offers: Mapping[str, Sequence[ColumnSchema]], roster: Sequence[str] | None = None) -> Setup:
        """Who takes part with which feature columns. Raises StudyError if there are fewer parties than the study or its
        cohort needs; PrivacyError if it costs more than its own ``privacy.epsilon``; DataError naming the party whose
        columns do not fit, and which columns it has. A roster names the parties where one offer stands for all."""
        parties = tuple(sorted(offers))
        roster = parties if roster is None else roster
        if len(roster) < self.cohort.minimum:
            who = f"{len(roster)} {'party offers' if len(parties) == 1 else 'parties offer'} {self.dataset!r}"
            what = f"{who} ({', '.join(parties) or 'none'}), and the study needs {self.cohort.minimum}"
            raise StudyError(what, remedy="Invite more parties, or lower cohort.minimum")
        chosen = {name: self._features(name, offers[name]) for name in parties}
        first = parties[0]
        for name in parties[1:]:
            if set(chosen[name]) != set(chosen[first]):
                missing = ", ".join(sorted(set(chosen[first]) ^ set(chosen[name])))
                has = ", ".join(column.name for column in offers[name])
                what = f"its feature columns are not those of {first!r}; they differ in {missing}; it has {has}"
                raise DataError(what, party=name, remedy="Name common columns in `features`")
        rules = [(name, rule) for name, rule in sorted(self.contract.columns.items()) if name in chosen[first]]
        categories = {name: rule.categories for name, rule in rules if rule.type == "category"}
        arrays = {c.name: c.shape for c in offers[first] if c.type == "array" and c.name in chosen[first]}
        numbers = tuple(c for c in chosen[first] if c not in categories and c not in arrays)
        for party, columns in sorted(offers.items()):
            if texts := [c.name for c in columns if c.name in numbers and c.type == "text"]:
                remedy = f"Run `hansa data check` there to see the row, {TO_NUMBERS}"
                raise DataError(f"the feature column {texts[0]!r} holds text", party=party, remedy=remedy)
        setup = Setup(roster, numbers, categories, self.seed, arrays, self.bounds(numbers))
        self.cohort.draw(setup, 1)  # refuses a cohort that the roster cannot fill
        cap = self.privacy.epsilon
        if cap and (public := self.guaranteed(setup)["public"]).epsilon > cap:
            why = f" ({'; '.join(public.exact)})" if public.exact else ""
            cost = f"an epsilon of {public.epsilon:.4g}{why}"
            remedy = "Add noise to [aggregation] and [statistics], run fewer rounds, or raise privacy.epsilon"
            raise PrivacyError(f"what the public sees costs {cost}, and privacy.epsilon is {cap:g}", remedy=remedy)
        return setup

    def bounds(self, numbers: Sequence[str]) -> dict[str, tuple[float, float]] | None:
        """The declared range of each number column, if sums pass stages, which need bounds; else None; raises
        StudyError if a column has none."""
        if not (self.method.statistics or (self.preprocessing.standardise and self.statistics.stages)):
            return None
        bounds = {}
        for name in numbers:
            rule = self.contract.columns.get(name)
            if rule is None or rule.low is None or rule.high is None or rule.low == rule.high:
                what = f"sums of the column {name!r} pass [statistics], and nothing bounds its numbers"
                remedy = f"Declare low and high of contract.columns.{name}, or set preprocessing.standardise = false"
                raise StudyError(what, remedy=remedy)
            bounds[name] = (rule.low, rule.high)
        return bounds

    def course(self, setup: Setup, secret: bytes = b"") -> Course:
        """The run among these parties, as pure functions; ``secret`` is a key of the one who adds noise, 32 bytes: in
        simulation noise comes from the seed."""
        return Course(
            task=self.task,
            method=self.method,
            moments=self.preprocessing,
            evaluate=self.evaluation,
            aggregation=self.aggregation,
            rounds=self.rounds,
            stop=self.stop,
            setup=setup,
            statistics=self.statistics,
            privacy=self.privacy,
            among=self._among(len(setup.parties)),
            period=self.cohort.period,
            secret=secret,
        )

    def _among(self, parties: int) -> Among:
        """How many of so many parties are in one sum."""
        cohort = self.cohort
        honest, goal = max(0, cohort.minimum - self.adversary.colluding), min(parties, self.pace.goal or parties)
        buffered = self.method.kind == "fedbuff"  # a sum is of a buffer, whoever is in it
        most, expected = (goal, goal) if buffered else (cohort.most(parties), cohort.expected(parties))
        return Among(min(goal, most), float(min(goal, expected)), honest, self.adversary.colluding)

    @property
    def guarantee(self) -> Guarantee:
        """What is protected, from whom, and what it costs: derived from everything that leaves a party; raises
        PrivacyError if it depends on the parties, which `guaranteed` is told."""
        return self.guaranteed(None)

    def guaranteed(self, setup: Setup | None, forked: str = "") -> Guarantee:
        """The same among known parties, where a sample of fixed size hides something, too."""
        among = self._among(len(setup.parties)) if setup else None
        releases = []
        for work, what, times, chain, signal in self._released(setup):
            trains = work == "train"
            some = self.evaluation.sample if work == "evaluate" else None
            asked = some or (len(setup.parties) if setup else 0)
            here = among if trains or among is None else among.all_of(asked)
            bound = chain.bind(replace(signal, privacy=self.privacy, among=here))[-1]
            if among is None and any(noised.where == "shares" for noised in bound.noise):
                what = "what shares of noise are worth depends on the parties and on the model's size"
                raise PrivacyError(what, remedy="Ask a run for its guarantee, or federation.guaranteed(setup)")
            noise = tuple((noised.where, noised.event) for noised in bound.noise)
            sampling = None
            # Where whoever is quick is counted, or whoever is late, too, there is no sample.
            if trains and not (self.pace.goal or self.pace.late) and (setup or self.cohort.kind == "poisson"):
                sampling = self.cohort.sampling(len(setup.parties) if setup else 0)
            held_out = work == "evaluate"
            least = bound.buckets.stay if bound.buckets else 0
            releases.append(Release(what, times, noise, bound.hidden, sampling, held_out, least))
        if forked:
            releases.append(Release(f"the run {forked}, from which this one was forked", 1, ()))
        return guarantee(self.privacy, self.adversary, releases)

    def _released(self, setup: Setup | None) -> Iterator[tuple[str, str, int, Aggregation, Signal]]:
        """What leaves the parties: by which work, in words, how often, through which stages, and as what."""
        course = None if setup is None else self.course(setup)
        weights: Any = getattr(self.method, "weights", "examples")
        if self.preprocessing.standardise:
            if course is None:
                yield "moments", "the columns' sums", 1, self.statistics, _ROWS
            else:
                begun = course.begin()
                ask = course.ask(begun)
                assert ask is not None
                for state in course.moments.phases(begun.states["moments"], ask):
                    asked = course.moments.ask(state)
                    assert asked is not None
                    signal = replace(_ROWS, fields=asked.fields)
                    yield "moments", "the columns' sums", 1, self.statistics, signal
        signal = Signal(())
        if course is not None:
            signal = course.trained
        elif isinstance(self.method, UpdateMethod):
            fields, schedule = self.method.declared(1), Schedule(self.rounds, self.cohort.period)
            signal = Signal(fields, weights=weights, noise=self.method.noise(self.privacy), schedule=schedule)
        if self.method.statistics:
            yield "train", "the columns' counts", 1, self.statistics, signal if course else _ROWS
        else:
            yield "train", f"the models of {self.rounds} rounds", self.rounds, self.aggregation, signal
        private = (self.privacy.unit, self.privacy.adjacency) == ("example", "add-remove")
        if private and weights == "examples":
            yield "weights", "the weights, which count examples", self.rounds, NO_STAGES, Signal(())
        if not self.evaluation.central and self.evaluation.due(self.rounds, last=True):
            times = -(-self.rounds // self.evaluation.every)
            own = self.evaluation.own and self.method.personalises
            fields = self.evaluation.fields(self.task, own)
            signal = Signal(fields, weights="equal")
            yield "evaluate", f"{times} evaluation{'s'[: times - 1]}", times, self.statistics, signal
            if own and self.privacy.unit == "example":  # of models that were trained on the rows learnt from
                yield "own", "the scores of the parties' own models", times, NO_STAGES, Signal(())

    def run(self, backend: Backend) -> Run:
        """Run it: simulated by `hansa.Local`, deployed by `hansa.Remote`; notebooks included."""
        return backend.run(self)

    def _features(self, party: str, columns: Sequence[ColumnSchema]) -> tuple[str, ...]:
        names = [column.name for column in columns if column.name != self.evaluation.split]
        if self.evaluation.split and len(names) == len(columns):
            what = f"the column {self.evaluation.split!r}, which says what is held out, is missing"
            raise DataError(what, party=party, remedy="Correct evaluation.split in the study, or the table")
        return self.task.select(names, party)
