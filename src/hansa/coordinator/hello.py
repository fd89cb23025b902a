"""What a party says when it begins to listen, as far as the coordinator takes it."""

from collections.abc import Iterable

from hansa.coordinator.events import Connected, Offered, Unsettled
from hansa.crypto.agreement import KEY
from hansa.data.table import ColumnSchema
from hansa.errors import TrustError
from hansa.text import without_controls
from hansa.wire import messages as m
from hansa.wire.rpcs import PENDING, PROTOCOL

OFFERS, COLUMNS, KINDS = 200, 20_000, 100
"""Offers of one party, columns of all of them together, and kinds of task that one of them allows."""

LONGEST_NAME = 200  # characters in the name of a data set, a column, or a kind of task


def speaks(protocol: int) -> None:
    """Raises TrustError unless the other side speaks this protocol."""
    if protocol != PROTOCOL:
        remedy = "Use the same version of Hansa on both sides"
        raise TrustError(f"the other side speaks protocol {protocol}, this coordinator {PROTOCOL}", remedy=remedy)


def connected(party: str, hello: m.Hello) -> Connected:
    """The event of a party that begins to listen; nothing in its offers moves a terminal's cursor. Raises TrustError:
    it speaks another protocol, or offers more than a coordinator keeps. (Of this kind, because to come back with the
    same offers is of no use.)."""
    speaks(hello.protocol)
    _at_most(OFFERS, "data sets", len(hello.offers), party)
    _at_most(COLUMNS, "columns in all", sum(len(o.columns) for o in hello.offers), party)
    offers = tuple(_offer(offer, party) for offer in hello.offers)
    # A database has limits that the wire has not.
    kept = (p for p in hello.pending[:PENDING] if p.version < 1 << 31 and p.run.isprintable())
    identity = hello.identity if len(hello.identity) == KEY else b""
    return Connected(party, offers, tuple(Unsettled(p.run, p.version) for p in kept), identity)


def _offer(offer: m.Offer, party: str) -> Offered:
    _at_most(KINDS, f"kinds of task on {offer.dataset[:LONGEST_NAME]!r}", len(offer.allow), party)
    _short((offer.dataset, *offer.allow, *(column.name for column in offer.columns)), party)
    clean = without_controls
    columns = tuple(ColumnSchema(clean(c.name), "text" if c.type == "text" else "number") for c in offer.columns)
    return Offered(clean(offer.dataset), offer.rows, columns, tuple(map(clean, offer.allow)))


def _at_most(most: int, what: str, count: int, party: str) -> None:
    if count > most:
        what = f"it offers {count} {what}, and a coordinator takes at most {most}"
        raise TrustError(what, party=party, remedy="Offer fewer, or a table with only the columns that studies need")


def _short(names: Iterable[str], party: str) -> None:
    for long in (name for name in names if len(name) > LONGEST_NAME):
        what = f"a name in its offers has {len(long)} characters, {long[:40]!r}...; at most {LONGEST_NAME} are taken"
        raise TrustError(what, party=party, remedy="Give the data set or the column a shorter name")
