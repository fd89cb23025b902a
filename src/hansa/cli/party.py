"""``hansa party``: who takes part, seen from the coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hansa.cli.operator import call
from hansa.cli.output import Json, Output
from hansa.errors import UsageError

if TYPE_CHECKING:
    from google.protobuf.message import Message


def invite(
    name: str, /, *, hours: float = 48.0, home: Path | None = None, json: Json = False
) -> None:
    """Make a one-time token for a new party; send it by a way that you trust.

    Example::

        hansa party invite north-hospital

    Args:
        name: what the party will be called, in any script.
        hours: how long the token can be used.
        home: folder of the coordinator; $HANSA_HOME/coordinator if not given.
    """
    from hansa.wire import messages as m
    from hansa.wire.rpcs import INVITE

    if not hours > 0:
        raise UsageError(f"--hours must be positive, not {hours:g}", remedy="Leave it out for 48.")
    out = Output(json)
    request = m.InviteRequest(party=name, lifetime_seconds=max(1, round(hours * 3600)))
    said = call(home, INVITE, request)
    out.say(f"A token for {name}, good once, until {said.expires[:16].replace('T', ' ')} UTC:")
    if not json:  # whoever reads the token can join: it is in the document, and in no log
        out.say(said.token, style="bold")
    out.say("There: hansa agent start --token TOKEN --data NAME=FILE --allow KIND")
    out.finish({"party": name, "token": said.token, "expires": said.expires})


def list_(*, home: Path | None = None, json: Json = False) -> None:
    """List the parties, what they offer, and who is connected.

    Example::

        hansa party list

    Args:
        home: folder of the coordinator; $HANSA_HOME/coordinator if not given.
    """
    from hansa.wire import messages as m
    from hansa.wire.rpcs import PARTIES

    out = Output(json)
    parties = call(home, PARTIES, m.PartiesRequest()).parties
    if not parties:
        out.say("Nobody has joined yet: hansa party invite NAME")
    else:
        rows = [
            (
                party.name,
                party.state,
                party.connected,
                party.certificate_expires[:16].replace("T", " "),
                ", ".join(
                    f"{o.dataset} ({o.rows} rows; {', '.join(o.allow)})" for o in party.offers
                ),
            )
            for party in parties
        ]
        out.table(("party", "state", "connected", "certificate until", "offers"), rows)
    out.finish({"parties": [_document(party) for party in parties]})


def remove(name: str, /, *, reason: str = "", home: Path | None = None, json: Json = False) -> None:
    """Shut a party out, at once: its streams are closed and its certificates refused.

    Example::

        hansa party remove north-hospital

    Args:
        name: of the party.
        reason: what its agent is told.
        home: folder of the coordinator; $HANSA_HOME/coordinator if not given.
    """
    from hansa.wire import messages as m
    from hansa.wire.rpcs import REMOVE

    out = Output(json)
    call(home, REMOVE, m.RemoveRequest(party=name, reason=reason))
    out.say(f"{name} is removed.")
    out.finish({"party": name, "state": "removed"})


def _document(party: Message) -> dict[str, object]:
    from google.protobuf.json_format import MessageToDict

    body: dict[str, object] = MessageToDict(
        party, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return body
