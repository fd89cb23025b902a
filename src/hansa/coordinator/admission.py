"""Among whom a study can run."""

from collections.abc import Collection, Mapping

from hansa.coordinator.live import Guest
from hansa.data.table import ColumnSchema
from hansa.errors import ConsentError, HansaError, StudyError, did_you_mean
from hansa.federation import Federation
from hansa.methods.base import Setup

LISTED = 10  # names that an error lists at most


def joining(federation: Federation, setup: Setup, guests: Mapping[str, Guest]) -> dict[str, str]:
    """Who is admissible by now, and not yet among those of an open study; each with why it cannot join, if so."""
    found, known = dict[str, str](), set(setup.parties)
    others = {name: guest for name, guest in guests.items() if name not in known}
    for name, columns in sorted(admissible(federation, others, 0).items()):
        try:
            own = federation.resolve({name: columns}, (*setup.parties, name))
            theirs, ours = ({*of.numbers, *of.categories, *of.arrays} for of in (own, setup))
            found[name] = f"its feature columns differ in {_listed(theirs ^ ours)}" if theirs != ours else ""
        except HansaError as error:
            found[name] = error.reason
    return found


def admissible(
    federation: Federation, guests: Mapping[str, Guest], needed: int | None = None
) -> dict[str, tuple[ColumnSchema, ...]]:
    """Of the parties that the coordinator knows, those that listen, offer the data set and allow this kind of task,
    with its columns. Raises ConsentError if the study brings code, or too few owners allow it; StudyError if fewer than
    are ``needed`` are there, saying who is and who is not: the study's minimum, unless it is said."""
    federation.require_no_code()
    kind, dataset = federation.task.kind, federation.dataset
    ready: dict[str, tuple[ColumnSchema, ...]] = {}
    refused: dict[str, tuple[str, ...]] = {}
    away: list[str] = []
    others: dict[str, list[str]] = {}
    for name, guest in guests.items():
        if guest.state != "active":
            continue
        offer = next((offer for offer in guest.offers if offer.dataset == dataset), None)
        if offer is None:
            others[name] = [offer.dataset for offer in guest.offers]
        elif not guest.listening:
            away.append(name)
        elif kind in offer.allow:
            ready[name] = offer.columns
        else:
            refused[name] = offer.allow
    needed = federation.cohort.minimum if needed is None else needed
    if len(ready) >= needed:
        return ready
    if refused:
        name, allow = sorted(refused.items())[0]
        what = f"its owner allows {', '.join(allow) or 'nothing'} on {dataset!r}, not {kind}"
        raise ConsentError(what, party=name, remedy=f"The owner can say `hansa agent start --allow {kind}`")
    raise _too_few(dataset, needed, ready, away, others)


def _too_few(
    dataset: str, needed: int, ready: Collection[str], away: Collection[str], others: Mapping[str, list[str]]
) -> StudyError:
    """Who is there, who is not, who offers something else, and what would help."""
    said = [f"connected and offering it: {_listed(ready) or 'none'}"]
    if away:
        said.append(f"offering it but not connected: {_listed(away)}")
    if others:
        kept = [f"{name} ({', '.join(sets) or 'nothing'})" for name, sets in others.items()]
        said.append(f"offering something else: {_listed(kept)}")
    elsewhere = {dataset for sets in others.values() for dataset in sets}
    if away:
        remedy = f"Have these agents started first: {_listed(away)}"
    elif elsewhere and not ready:
        remedy = did_you_mean(dataset, elsewhere)
    elif others:
        remedy = f"The others can say `hansa agent start --data {dataset}=FILE --allow KIND`"
    else:
        remedy = "Invite more with `hansa party invite NAME`, or lower the study's minimum"
    who = "1 party that offers" if needed == 1 else f"{needed} parties that offer"
    return StudyError(f"the study needs {who} the data set {dataset!r} ({'; '.join(said)})", remedy=remedy)


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:LISTED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
