"""``hansa agent``: the program that stands beside a party's data."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hansa.cli.data import offered
from hansa.cli.home import AgentFolder, KeyFile, agent_home
from hansa.cli.output import Json, Output
from hansa.cli.serving import Leash, Metrics, Verbose, log_to_stderr, serve, sole
from hansa.errors import TrustError, UnreachableError, UsageError

if TYPE_CHECKING:
    from hansa.agent.home import AgentHome
    from hansa.agent.policy import Offer


def start(
    *,
    token: str = "",
    data: Sequence[str] = (),
    allow: Sequence[str] = (),
    budget: float | None = None,
    delta: float | None = None,
    honest: int | None = None,
    roster: Path | None = None,
    key_file: KeyFile = None,
    metrics: Metrics = "",
    metrics_epsilon: bool = False,
    home: AgentFolder = None,
    verbose: Verbose = False,
    leash: Leash = False,
    json: Json = False,
) -> None:
    """Join with a token (the first time), offer tables, and serve until Ctrl-C.

    The agent only dials out. It works on tables that are offered here, by task kinds that are
    allowed here, and writes down in left.jsonl what leaves.

    For example:

        hansa agent start --token T --data tumours=rows.csv --allow logistic-regression

    Args:
        token: the invitation, the first time; later the folder remembers.
        data: NAME=FILE (CSV or Parquet) or NAME=URL#SELECT ...; may be given several times.
        allow: a kind of task that may run on these tables; may be given several times.
        budget: the epsilon that all studies together may cost one row, for ever; remembered.
        delta: at which the budget is taken, 1e-05 if not said.
        honest: honest parties that must be beside this one in a secure sum, 3 if never said; remembered.
        roster: a file of lines NAME = "WORDS", the identities of others, from whom you trust to know them.
        metrics_epsilon: let the metrics tell what its rows have cost, too."""
    from hansa.agent.offers import Offers, checked_kinds, named, pinned
    from hansa.crypto.vault import Vault

    out = Output(json)
    log_to_stderr(verbose)
    folder = agent_home(home)
    # Checked before a folder is made for them.
    wanted, kinds = [named(word) for word in data], checked_kinds(allow)
    if budget is None and delta is not None:
        raise UsageError("a delta without a budget does nothing", remedy="Say --budget, too")
    delta = 1e-5 if delta is None else delta
    if budget is not None and not (0 < budget < math.inf and 0 < delta <= 0.01):
        remedy = "A budget is above 0; delta, the chance that nothing is hidden, is at most 0.01: better far less"
        raise UsageError(f"a budget of epsilon {budget:g} at delta {delta:g}", remedy=remedy)
    known = pinned(roster) if roster is not None else {}
    if honest is not None and honest < 1:
        raise UsageError(f"{honest} honest parties", remedy="Say 1 or more: alone, a sum is what it sums")
    with sole(folder):
        Vault.of(folder, key_file)
        with contextlib.closing(Offers(folder)) as offers:
            if budget is not None:
                offers.allow_epsilon(budget, delta)
            if honest is not None:
                offers.ask_for(honest)
            for name, said in known.items():
                offers.confirm(name, said)
            for name, source in wanted:
                offers.add(name, source, kinds)
            if kinds and not wanted:
                offers.allow(kinds)
            if not offers:
                remedy = "Say --data NAME=FILE --allow KIND, or `hansa data add`."
                raise UsageError("nothing is on offer", remedy=remedy)
            program = _serve(out, folder, token, offers.read(), metrics, metrics_epsilon)
        asyncio.run(serve(program, leash=leash))


async def _serve(out: Output, folder: Path, token: str, offers: Sequence[Offer], metrics: str, epsilon: bool) -> None:
    from hansa.agent.service import Agent
    from hansa.crypto.agreement import words
    from hansa.telemetry import export, span

    with span("join"):
        joined = await _join(out, folder, token)
    agent = Agent(joined, offers, say=out.say)
    if metrics:
        export(metrics, agent.gauges(epsilon))
    for offer in offers:
        size = f"{offer.table.rows} rows, {len(offer.table.names)} columns"
        out.say(f"Offering {offer.dataset}: {size}, for {', '.join(offer.allow)}")
    out.say(f"What leaves is written to {folder / 'left.jsonl'}")
    own = words(joined.identity.public)
    out.finish({"party": joined.party, "address": joined.address, "home": folder, "identity": own})
    try:
        await agent.run()
    except asyncio.CancelledError:
        out.say("Stopped.")
        raise


async def _join(out: Output, folder: Path, token: str) -> AgentHome:
    """Join, if it has not; wait, and say so once, while the coordinator is down."""
    from hansa.agent.home import AgentHome
    from hansa.agent.left import Left
    from hansa.crypto import pki
    from hansa.crypto.token import Token, secret_hash

    decoded = Token.decode(token) if token else None
    if decoded is None or AgentHome.joined(folder):
        earlier = AgentHome.open(folder)
        pki.read_authority(folder)  # without it, no coordinator would ever be the right one
        if decoded is None:
            return earlier
        try:
            pki.pinned_authority(earlier.root_pem, decoded.authority_key)
        except TrustError:
            what = f"{earlier.party} has joined another coordinator in {folder}, and the token is of a different one"
            raise TrustError(what, remedy="Leave --token out, or choose another folder with --home") from None
        if earlier.joined_with == secret_hash(decoded.secret).hex():
            out.say(f"{earlier.party} has joined already; the token is not needed any more.")
            return earlier
    pause = 0.2
    with contextlib.closing(Left(folder / "left.jsonl")) as left:
        while True:
            try:
                joined = await AgentHome.join(folder, decoded, left)
                out.say(f"Joined {joined.federation} as {joined.party}.")
                return joined
            except UnreachableError as error:
                if pause == 0.2:  # the first time
                    out.say(f"Waiting for the coordinator: {error}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)


def status(*, confirm: bool = False, home: AgentFolder = None, json: Json = False) -> None:
    """Say how the agent is doing: who it is, what it offers, what has left.

    For example:

        hansa agent status

    Args:
        confirm: go on, after a refusal that told of rows, or from an old backup, whose ledger is taken as spent."""
    from cryptography import x509

    from hansa.agent.home import AgentHome
    from hansa.agent.offers import Offers
    from hansa.crypto.agreement import words

    out, folder = Output(json), agent_home(home)
    joined = AgentHome.open(folder)
    expires = x509.load_pem_x509_certificate(joined.certificate_pem).not_valid_after_utc
    listed = offered(folder)
    with contextlib.closing(Offers(folder)) as offers:
        if confirm:
            with sole(folder):
                offers.take_as_spent()
        privacy, roster = offers.privacy(), offers.roster(joined.party)
    own = words(joined.identity.public)
    spent, budget = privacy["spent"], privacy["budget"]
    record = folder / "left.jsonl"
    messages = record.read_bytes().count(b"\n") if record.exists() else 0
    out.say(f"{joined.party}, a party of {joined.federation} at {joined.address}")
    out.say(f"its certificate is valid until {expires:%Y-%m-%d %H:%M} UTC and renews itself")
    out.say(f"its identity, to be read out to the others: {own}")
    for one in roster:
        known = "confirmed" if one["confirmed"] else "not confirmed: hansa agent confirm NAME WORDS"
        out.say(f"{one['party']} is {one['words']} ({known})")
    for offer in listed:
        out.say(f"offers {offer['dataset']} ({offer['source']}) for {', '.join(offer['allow'])}")
    of = f" of {budget:g}" if budget else ", without a budget"
    cost = f"epsilon {spent:.4g}" if spent < math.inf else "without a bound: sums left without noise"
    charges = f"{privacy['answers']} answers at delta {privacy['delta']:g}"
    out.say(f"its rows have cost {cost}{of}, in {charges}")
    if privacy["missing"]:
        out.say("its ledger is older than its answers, so it takes part in nothing: restore the newest backup,")
        out.say("or take the ledger as spent: `hansa agent status --confirm`")
    if privacy["restored"]:
        out.say(f"it came back from a backup of {privacy['restored']} and takes part in nothing, as it may not know of")
        out.say("answers that it gave since: go on by `hansa agent status --confirm`")
    for run, version in privacy["refused"].items():
        out.say(f"it could not do exchange {version} of run {run}, which tells of its rows, so it does no more:")
        out.say("see its log for the reason, and go on by `hansa agent status --confirm`")
    out.say(f"{messages} messages have left; {record} tells of each")
    document = {
        "party": joined.party,
        "federation": joined.federation,
        "address": joined.address,
        "identity": own,
        "certificate_expires": expires.isoformat(),
        "roster": roster,
        "offers": listed,
        "privacy": {**privacy, "spent": spent if spent < math.inf else None},
        "left": {"file": record, "messages": messages},
    }
    out.finish(document)


def confirm(name: str, *words: str, home: AgentFolder = None, json: Json = False) -> None:
    """Remember another party's identity, as its people read it out: secure sums are with confirmed ones only.

    For example:

        hansa agent confirm bremen zabod zapup munug juguj noguh jasuv dozit gafon

    Args:
        name: the other party.
        words: the eight words that its own `hansa agent status` shows."""
    from hansa.agent.home import AgentHome
    from hansa.agent.offers import Offers

    out, folder = Output(json), agent_home(home)
    AgentHome.open(folder)
    with contextlib.closing(Offers(folder)) as offers:
        offers.confirm(name, " ".join(words))
    out.say(f"{name} is confirmed: secure sums with it are possible from now on.")
    out.finish({"party": name, "confirmed": True})
