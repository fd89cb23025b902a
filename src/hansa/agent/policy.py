"""The one gate between a coordinator's wish and a party's data."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hansa.contribution import Ask
from hansa.data.table import Table
from hansa.errors import ConsentError, HansaError
from hansa.federation import Federation
from hansa.methods.base import Setup
from hansa.methods.course import Course
from hansa.run import draw
from hansa.secure.terms import Rules


@dataclass(frozen=True)
class Offer:
    """What a table's owner offers: its rows, the name under which studies ask for them, and the kinds of task
    that may run on them."""

    dataset: str
    table: Table
    allow: tuple[str, ...]

    @property
    def rows(self) -> int:
        """As many rows as are told of: down to a power of two, as the number would tell of one more or less."""
        return 1 << self.table.rows.bit_length() >> 1


def admit(federation: Federation, ask: Ask, setup: Setup, offers: Sequence[Offer], party: str) -> Offer:
    """The offer whose table an ask to this party may use; called before anything runs, for every ask.

    Args:
        federation: read from the bytes whose hash the ask names.
        ask: what the coordinator wants.
        setup: among whom, and on which columns.
        offers: what the owner offers.
        party: this party's name.

    Raises ConsentError with the reason: code, a kind or data set that the owner did not allow, columns that the study
    does not name, fields that its method does not declare, or another way through the stages than the study's."""
    offer = _offered(federation, offers)
    if party not in ask.parties:
        raise ConsentError("this party was not asked")
    if len(set(setup.parties[: ask.among or None])) < federation.cohort.minimum:
        raise ConsentError("the run is among fewer parties than the study's minimum")
    _columns(federation, setup, offer, party)
    if setup.bounds != federation.bounds(setup.numbers):
        raise ConsentError("the run moves numbers from other ranges than the study's contract declares")
    try:
        course = outlined(federation, setup)
        drawn, permitted = draw(federation, course, ask), course.permits(ask)
    except HansaError as error:
        raise ConsentError(f"the study cannot be run here: {error.said}") from error
    if (ask.parties, ask.among) != (drawn.parties, drawn.among):
        raise ConsentError("the coordinator asks another cohort than the study draws")
    if not permitted:
        fields = ", ".join(field.name for field in ask.fields)
        what = f"{ask.work!r} asks for other fields than the study declares ({fields}), or by another way"
        raise ConsentError(what, remedy="The coordinator is of another version, or not to be trusted")
    return offer


_OUTLINED = deque[tuple[Federation, Setup, Course]](maxlen=8)


def outlined(federation: Federation, setup: Setup) -> Course:
    """The course of a federation among these, made once for what is asked again and again."""
    for known, among, course in _OUTLINED:
        if known is federation and among is setup:
            return course
    _OUTLINED.append((federation, setup, federation.course(setup)))
    return _OUTLINED[-1][-1]


def company(rules: Rules, honest: int) -> None:
    """Refuse a secure sum in which a party may be with fewer honest ones than its owner asks for. Raises ConsentError
    naming what would do."""
    if rules.honest < honest:
        sure, way = f"the study is sure of {rules.honest}", f"`hansa agent start --honest {rules.honest}`"
        low = "bucket.minimum" if rules.bucket else "cohort.minimum"
        what = f"its owner asks for {honest} honest parties beside it in a secure sum, and {sure}"
        raise ConsentError(what, remedy=f"Raise {low} to {honest + rules.corrupt + 1}, or its owner can say {way}")


def _offered(federation: Federation, offers: Sequence[Offer]) -> Offer:
    """What the owner offers under the study's data set, if its kind of task is allowed on it."""
    federation.require_no_code()
    offer = next((o for o in offers if o.dataset == federation.dataset), None)
    if offer is None:
        remedy = f"Its owner can say `hansa agent start --data {federation.dataset}=FILE --allow KIND`"
        raise ConsentError(f"this party offers no data set {federation.dataset!r}", remedy=remedy)
    kind = federation.task.kind
    if kind not in offer.allow:
        what = f"its owner allows {', '.join(offer.allow) or 'nothing'} on {offer.dataset!r}, not {kind}"
        raise ConsentError(what, remedy=f"Its owner can say `hansa agent start --allow {kind}`")
    return offer


def _columns(federation: Federation, setup: Setup, offer: Offer, party: str) -> None:
    """Only the columns that the study names are read."""
    names = [name for name in offer.table.names if name != federation.evaluation.split]
    chosen = sorted(federation.task.select(names, party))
    wanted = sorted([*setup.numbers, *setup.categories])
    if wanted != chosen:
        differing = ", ".join(sorted(set(wanted) ^ set(chosen) or set(wanted)))
        raise ConsentError(f"the coordinator wants the columns {differing} otherwise than the study says")
    if setup.seed != federation.seed:
        raise ConsentError("the coordinator draws from another seed than the study's")
    rules = federation.contract.columns.items()
    declared = {name: rule.categories for name, rule in rules if rule.type == "category" and name in chosen}
    if dict(setup.categories) != declared:
        raise ConsentError("the coordinator wants other categories than the study's contract says")
