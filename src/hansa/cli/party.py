"""``hansa party``: who takes part, seen from the coordinator."""

from functools import partial

from hansa.cli.home import CoordinatorFolder
from hansa.cli.operator import call
from hansa.cli.output import Json, Output
from hansa.errors import UsageError


def invite(name: str, /, *, hours: float = 48.0, home: CoordinatorFolder = None, json: Json = False) -> None:
    """Make a one-time token for a new party; send it by a way that you trust.

    For example:

        hansa party invite north-hospital

    Args:
        name: what the party will be called, in any script.
        hours: how long the token can be used."""
    from hansa.wire.rpcs import INVITE

    if not hours > 0:
        raise UsageError(f"--hours must be positive, not {hours:g}", remedy="Leave it out for 48.")
    out = Output(json)
    said = call(home, INVITE, party=name, lifetime_seconds=max(1, round(hours * 3600)))
    out.say(f"A token for {name}, good once, until {said.expires[:16].replace('T', ' ')} UTC:")
    if not json:  # whoever reads the token can join: it is in the document, and in no log
        out.say(said.token, style="bold")
    out.say("There: hansa agent start --token TOKEN --data NAME=FILE --allow KIND")
    out.finish({"party": name, "token": said.token, "expires": said.expires})


def list_(*, home: CoordinatorFolder = None, json: Json = False) -> None:
    """List the parties, what they offer, and who is connected.

    For example:

        hansa party list"""
    from google.protobuf.json_format import MessageToDict

    from hansa.wire.rpcs import PARTIES

    out, parties = Output(json), call(home, PARTIES).parties
    rows = []
    for p in parties:
        offers = (f"{o.dataset} ({o.rows}+ rows; {', '.join(o.allow)})" for o in p.offers)
        rows.append((p.name, p.state, p.connected, p.certificate_expires[:16].replace("T", " "), ", ".join(offers)))
    if not rows:
        out.say("Nobody has joined yet: hansa party invite NAME")
    else:
        out.table(("party", "state", "connected", "certificate until", "offers"), rows)
    told = partial(MessageToDict, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    out.finish({"parties": list(map(told, parties))})


def remove(name: str, /, *, reason: str = "", home: CoordinatorFolder = None, json: Json = False) -> None:
    """Shut a party out, at once: its streams are closed and its certificates refused.

    For example:

        hansa party remove north-hospital

    Args:
        name: of the party.
        reason: what its agent is told."""
    from hansa.wire.rpcs import REMOVE

    out = Output(json)
    call(home, REMOVE, party=name, reason=reason)
    out.say(f"{name} is removed.")
    out.finish({"party": name, "state": "removed"})
