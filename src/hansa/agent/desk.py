"""Where the agent works: studies that were described, tables that were read, parties at work."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from hansa.agent.machine import Asked, Worked
from hansa.agent.policy import Offer, admit
from hansa.contribution import Json, Values
from hansa.data.contract import check
from hansa.errors import ConsentError, HansaError
from hansa.federation import Federation
from hansa.methods.base import Setup
from hansa.party import Party
from hansa.wire import tensors

KEPT = 8
"""Studies that stay open; an agent takes part in few at a time."""


class Desk:
    """Answers asks; no network, no store.

    Args:
        party: this party's name.
        offers: what the owner offers.
    """

    def __init__(self, party: str, offers: Sequence[Offer]) -> None:
        self._name, self._offers = party, tuple(offers)
        self._studies: dict[str, tuple[str, Federation, Setup]] = {}
        self._parties: dict[str, Party] = {}

    def knows(self, run: str) -> bool:
        """Whether the run's study was described."""
        return run in self._studies

    def describe(self, run: str, federation: bytes, setup: dict[str, Json]) -> None:
        """Take in a study; its hash is that of the bytes themselves."""
        while len(self._studies) >= KEPT:
            oldest = next(iter(self._studies))
            self._studies.pop(oldest)
            self._parties.pop(oldest, None)
        hashed = hashlib.sha256(federation).hexdigest()
        parsed = Federation.from_json(federation)
        self._studies[run] = (hashed, parsed, Setup.from_json(setup))

    def work(self, asked: Asked, memory: bytes) -> Worked:
        """Ask the gate, then do the work.

        Args:
            asked: what the coordinator wants.
            memory: what this party remembers of the run, as tensors.

        Raises:
            HansaError: if it may not or cannot be done.
        """
        hashed, federation, setup = self._studies[asked.run]
        if hashed != asked.federation:
            raise ConsentError("the study described is not the one whose hash the ask names")
        offer = admit(federation, asked.ask, setup, self._offers, self._name)
        party = self._party(asked.run, federation, setup, offer)
        remembered = Values(tensors.read(memory)) if memory else Values()
        answer = party.answer(asked.ask, remembered)
        kept = b""
        if answer.memory:
            kept = tensors.write(Values({**remembered, **answer.memory}))
        body = tensors.write(answer.contribution.values)
        return Worked(asked, answer.contribution.weight, body, kept)

    def _party(self, run: str, federation: Federation, setup: Setup, offer: Offer) -> Party:
        if run not in self._parties:
            try:
                check(offer.table, federation.contract)
            except HansaError as error:
                error.party = self._name
                raise
            self._parties[run] = Party(self._name, offer.table, federation.course(setup))
        return self._parties[run]
