"""Where the agent works: studies that were described, tables that were read, parties at work."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hansa import tensors
from hansa.agent.checkpoint import Kept
from hansa.agent.ledger import Ledger
from hansa.agent.machine import Asked, Sitting, Worked
from hansa.agent.policy import Offer, admit, company, outlined
from hansa.aggregation.ring import joined, sitting
from hansa.contribution import Json, Values
from hansa.data.contract import check
from hansa.data.table import Table
from hansa.errors import ConsentError, HansaError
from hansa.federation import Federation, deployed
from hansa.methods.base import Setup, UpdateMethod
from hansa.party import Party
from hansa.run import now
from hansa.tensors import Buffer

STUDIES, PARTIES = 256, 8
"""Studies that are remembered, and those whose encoded tables stay in memory; an agent takes part in few at a time."""

FEWEST = 5
"""Rows of which a sum may be released: a study can hold out all rows but one, and the sum over one row is
the row. A floor under the crudest questions, and no privacy guarantee."""


class Study(NamedTuple):
    """A study as it was described: the hash of its bytes, what they say, and among whom."""

    hashed: str
    federation: Federation
    setup: Setup


class SpentError(Exception):
    """Work that failed after it was charged, or for its rows: that it failed may say something, too."""

    def __init__(self, error: Exception, charge: Mapping[str, Any]) -> None:
        super().__init__(str(error))
        self.error, self.charge = error, charge


class Desk:
    """Answers asks to the party of a name, from what its owner offers; no network, no store."""

    def __init__(
        self,
        party: str,
        offers: Sequence[Offer],
        secret: bytes = b"",
        ledger: Ledger | None = None,
        honest: int = 1,
        keep: Callable[[list[Buffer]], Buffer] = b"".join,
    ) -> None:
        self._name, self._offers, self._secret, self._honest = party, tuple(offers), secret, honest
        self._ledger, self._keep = ledger or Ledger(), keep
        self._studies: dict[str, Study] = {}
        self._parties: dict[str, tuple[Study, Party]] = {}

    def knows(self, run: str, among: int = 0) -> bool:
        """Whether the run's study was described, when so many or more took part in it."""
        return run in self._studies and among <= len(self._studies[run].setup.parties)

    def describe(self, run: str, federation: bytes, setup: dict[str, Json]) -> None:
        """Take in a study; its hash is that of the bytes themselves."""
        while len(self._studies) >= STUDIES:
            del self._studies[next(iter(self._studies))]
        hashed = hashlib.sha256(federation).hexdigest()
        self._studies[run] = Study(hashed, Federation.from_json(federation), Setup.from_json(setup))

    def begins(self, run: str) -> int:
        """Bytes of all that a described study's methods begin with, several times: no ask brings more."""
        _, federation, setup = self._studies[run]
        return 8 * sum(state.values.nbytes for state in outlined(federation, setup).outline.states.values())

    def work(self, asked: Asked, memory: bytes, path: Path | None = None) -> Worked:
        """Ask the gate, then do the work; ``memory`` is what this party remembers of the run, as tensors, and with
        ``path`` begin its checkpoints, if any. Raises HansaError if it may not or cannot be done."""
        self._ledger.require_whole()
        hashed, federation, setup = study = self._studies[asked.run]
        if hashed != asked.federation:
            raise ConsentError("the study described is not the one whose hash the ask names")
        offer = admit(federation, asked.ask, setup, self._offers, self._name)
        key = {"run": asked.run, "version": asked.ask.version, "attempt": asked.attempt, "at": now()}
        try:
            party = self._party(asked.run, study, offer)
        except HansaError as error:
            if told := self._ledger.told(key):
                raise SpentError(error, told) from error
            raise
        signal = party.course.signals(asked.ask)[-1]
        rules = federation.rules(len(setup.parties), signal.buckets)
        if signal.hidden:
            if rules is None:
                raise ConsentError("its study says nothing of the secure sum that hides the answer")
            company(rules, self._honest)
            party = party.again(asked.attempt)
        noise = signal.noise
        if asked.ask.through == "update" and getattr(federation.method, "weights", "equal") == "examples":
            noise = ()  # its weight is the number of its rows
        charge = {} if asked.paid else self._ledger.charge(key, federation.privacy, noise, signal.hidden)
        trains = asked.ask.work == "train" and isinstance(federation.method, UpdateMethod)
        own = path and trains and Kept(party.course.learner, path, self._secret, asked, memory)
        party.own = {"learner": own} if own else {}  # of which neither charges nor noise know
        try:
            remembered = Values(tensors.read(memory)) if memory else Values()
            answer = party.answer(asked.ask, remembered)
            kept = tensors.write(Values({**remembered, **answer.memory})) if answer.memory else b""
            values = answer.contribution.values
            if not signal.hidden or rules is None:
                return Worked(asked, answer.contribution.weight, self._keep(tensors.pieces(values)), kept, charge)
            fresh = any(noised.where != "coordinator" for noised in signal.noise)
            vector = Sitting(sitting(asked.ask, signal), rules, fresh, joined(values, signal.fields))
            return Worked(asked, 1.0, b"", kept, charge, vector)
        except Exception as error:
            raise SpentError(error, self._ledger.told(charge or key)) from error

    def _party(self, run: str, study: Study, offer: Offer) -> Party:
        known, party = self._parties.get(run, (None, None))
        if party is None or known is not study:  # its course is the study's, as it was described
            try:
                check(offer.table, study.federation.contract)
            except HansaError as error:
                error.party = self._name
                raise
            while len(self._parties) >= PARTIES:
                del self._parties[next(iter(self._parties))]
            party = Party(self._name, offer.table, deployed(study.federation, study.setup, self._secret, run))
            _enough_rows(*party.split)
            self._parties[run] = study, party
        return party


def _enough_rows(train: Table, test: Table) -> None:
    for rows, what in ((train.rows, "to learn from"), (test.rows, "held out")):
        if rows < FEWEST and (rows or what == "to learn from"):
            few = f"fewer than {FEWEST} rows {what} in this study, and sums over so few do not leave it"
            remedy = "Offer more rows, or change evaluation.holdout in the study"
            raise ConsentError(f"this party has {few}", remedy=remedy)
