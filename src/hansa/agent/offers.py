"""The tables that a party's owner offers, and what may be done with them."""

import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from hansa.agent.ledger import CONFIRMED, HEARD, MISSING, RESTORED, TOLD, Budget
from hansa.agent.policy import Offer
from hansa.agent.store import AgentStore
from hansa.crypto.agreement import words
from hansa.data.source import Source, read
from hansa.database import Drop, Put
from hansa.errors import DataError, TrustError, UsageError, did_you_mean
from hansa.task import BUILT_IN

WORDS = re.compile(r"([a-z]{5} ){7}[a-z]{5}")  # how `hansa.crypto.agreement.words` says an identity


class Offers:
    """The offers of the agent in a folder, kept in its store."""

    def __init__(self, home: Path) -> None:
        self._store = AgentStore(home)

    def __len__(self) -> int:
        return len(self._store.rows("offer"))

    def add(self, dataset: str, source: Source, allow: Sequence[str]) -> Offer:
        """Offer a table under a name; it is read once, to be sure that it can be. Raises DataError if it cannot be
        read; UsageError if nothing is allowed on it, now or before."""
        table, source = read(source), _anchored(source)
        known = self._store.row("offer", dataset=dataset)
        kinds = tuple(allow) or tuple(known["allow"] if known else ())
        if not kinds:
            remedy = f"Say --allow KIND; known: {', '.join(BUILT_IN)}"
            raise UsageError(f"no kind of task is allowed on {dataset!r}", remedy=remedy)
        self._store.apply([Put("offer", {"dataset": dataset, "source": source.model_dump(), "allow": list(kinds)})])
        return Offer(dataset, table, kinds)

    def allow(self, kinds: Sequence[str]) -> None:
        """Allow these kinds on every table, beside what is allowed already."""
        rows = self._store.rows("offer")
        merged = [{**row, "allow": list(dict.fromkeys([*row["allow"], *kinds]))} for row in rows]
        self._store.apply([Put("offer", row) for row in merged])

    def allow_epsilon(self, epsilon: float, delta: float) -> None:
        """What all studies together may cost a row of any table."""
        order = (self._store.ledger().budget or Budget(epsilon, delta)).order
        row = {"unit": "example", "epsilon": epsilon, "delta": delta}
        self._store.apply([Put("budget", row), Put("rule", {"name": "order", "value": order})])

    def ask_for(self, honest: int) -> None:
        """How many honest parties must be beside this one in a secure sum."""
        self._store.apply([Put("rule", {"name": "honest", "value": honest})])

    def confirm(self, name: str, said: str) -> None:
        """Remember the words of another party's identity, as its people said them. Raises UsageError if they are not
        the words of an identity; TrustError if the coordinator shows another identity under that name."""
        spelt, row = _spelt(said), self._store.row("member", name=name)
        if row and row["identity"] and words(row["identity"]) != spelt:
            remedy = f"Ask the people of {name} what their `hansa agent status` says: one of the two lies"
            raise TrustError(f"the coordinator shows {words(row['identity'])!r} for {name!r}", remedy=remedy)
        self._store.apply([Put("member", {"name": name, "identity": None, "words": spelt})])

    def roster(self, but: str = "") -> list[dict[str, Any]]:
        """The other parties: the words of each in the latest roster that was refused, or else as confirmed."""
        rows = [row for row in self._store.rows("member", order="name") if row["name"] != but]
        both = zip(rows, [words(row["identity"]) if row["identity"] else row["words"] for row in rows], strict=True)
        return [{"party": r["name"], "words": said, "confirmed": said == r["words"]} for r, said in both]

    def remove(self, dataset: str) -> None:
        """Take a table off the offer. Raises UsageError if none is offered under that name."""
        known = [row["dataset"] for row in self._store.rows("offer")]
        if dataset not in known:
            raise UsageError(f"no table is offered as {dataset!r}", remedy=did_you_mean(dataset, known))
        self._store.apply([Drop("offer", {"dataset": dataset})])

    def read(self) -> list[Offer]:
        """All offers, with their tables. Raises DataError naming the data set whose table cannot be read."""
        offers = []
        for row in self._store.rows("offer", order="dataset"):
            try:
                table = read(Source(**row["source"]))
            except DataError as error:
                error.message = f"{row['dataset']}: {error.message}"
                raise
            offers.append(Offer(row["dataset"], table, tuple(row["allow"])))
        return offers

    def listed(self) -> list[dict[str, Any]]:
        """All offers, without reading a table."""
        rows = self._store.rows("offer", order="dataset")
        return [{**row, "source": _shown(Source(**row["source"]))} for row in rows]

    def privacy(self) -> dict[str, Any]:
        """What the rows have cost, taken anew from the ledger, and the budget."""
        ledger = self._store.ledger()
        budget = ledger.budget
        delta = budget.delta if budget else 1e-5
        known = {name: getattr(ledger, name) for name in ("answers", "missing", "refused", "restored")}
        return {"spent": ledger.spent(delta), "delta": delta, "budget": budget.epsilon if budget else None, **known}

    def take_as_spent(self) -> None:
        """Take the ledger as spent, of which charges are missing, and what refusals told as told."""
        after = {MISSING: CONFIRMED, TOLD: HEARD, RESTORED: HEARD}
        rows = self._store.rows("charge", attempt=[*after])
        self._store.apply([Put("charge", {**row, "attempt": after[row["attempt"]]}) for row in rows])

    def close(self) -> None:
        """Release the store."""
        self._store.close()


def _anchored(source: Source) -> Source:
    """The source with absolute paths: the agent may be started from another folder."""
    if source.path is not None:
        return source.model_copy(update={"path": str(Path(source.path).absolute())})
    if source.url is not None and source.url.startswith("sqlite"):
        url = sa.make_url(source.url)
        if url.database:
            absolute = url.set(database=str(Path(url.database).absolute()))
            return source.model_copy(update={"url": absolute.render_as_string(hide_password=False)})
    return source


def _shown(source: Source) -> str:
    """The source for people, without a password."""
    if source.url is not None:
        return f"{sa.make_url(source.url).render_as_string()}#{source.sql}"
    return source.path or source.sql or ""


def named(word: str, encoding: str = "utf-8") -> tuple[str, Source]:
    """``NAME=FILE`` as a name and a source. Raises UsageError if there is no name."""
    name, equals, text = word.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"{word!r} names no data set", remedy="Write --data NAME=FILE")
    return name.strip(), Source.parse(text, encoding)


def pinned(path: Path) -> dict[str, str]:
    """The identities in a TOML file of lines ``NAME = "WORDS"``; a UsageError if it is none."""
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: _spelt(said) for name, said in known.items()}
    except (OSError, ValueError) as error:
        raise UsageError(f"the roster {path} cannot be read: {error}") from None


def _spelt(said: Any) -> str:
    """The words of an identity as they are kept; a UsageError if they are none."""
    spelt = " ".join(str(said).lower().split())
    if not WORDS.fullmatch(spelt):
        raise UsageError(f"{said!r} is no identity", remedy="It is eight words of five letters")
    return spelt


def checked_kinds(words: Iterable[str]) -> tuple[str, ...]:
    """Kinds of task, several in one word if commas stand between them. Raises UsageError naming an unknown one, and the
    nearest known."""
    kinds = [kind.strip() for word in words for kind in word.split(",") if kind.strip()]
    for kind in kinds:
        if kind not in BUILT_IN:
            raise UsageError(f"there is no task kind {kind!r}", remedy=did_you_mean(kind, BUILT_IN))
    return tuple(dict.fromkeys(kinds))
