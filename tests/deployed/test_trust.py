"""Who may come in, who may ask what, and that whoever is removed is out."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hansa as hs
from hansa.agent import home as agent_home
from hansa.agent import service as agent_service
from hansa.agent.home import AgentHome
from hansa.agent.left import Left
from hansa.contribution import canonical
from hansa.crypto import keys, pki
from hansa.crypto.token import Token
from hansa.errors import RunError, StudyError, TrustError
from hansa.wire import messages as m
from hansa.wire.channel import client_channel
from hansa.wire.client import Client
from hansa.wire.rpcs import DESCRIBE, FETCH, INVITE, JOIN, PROTOCOL, REMOVE, RENEW, RESULT, RPCS, Rpc

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""
Dial = Callable[..., Any]


async def knock(folder: Path, token: Token) -> AgentHome:
    left = Left(folder / "left.jsonl")
    try:
        return await AgentHome.join(folder, token, left)
    finally:
        left.close()


async def call(client: Client, rpc: Rpc[Any, Any]) -> None:
    """Call it with an empty request, however it is called."""
    if rpc.kind == "unary":
        await client.unary(rpc, rpc.request())
    elif rpc.kind == "server_stream":
        async for _ in client.stream(rpc, rpc.request()):
            return
    else:
        async with client.bidi(rpc) as conversation:
            await conversation.send(rpc.request())
            await conversation.receive()


async def remove(town: Town, name: str, reason: str = "") -> None:
    async with town.operator() as client:
        await client.unary(REMOVE, m.RemoveRequest(party=name, reason=reason))


# --- tokens


async def test_a_token_is_good_once_and_not_for_ever(town: Town) -> None:
    token = await town.invite("诊所")
    await knock(town.folder / "first", token)
    with pytest.raises(TrustError, match="party '诊所': the token was used already"):
        await knock(town.folder / "second", token)
    assert not AgentHome.joined(town.folder / "second")
    late = await town.invite("mill", 0)
    with pytest.raises(TrustError, match="party 'mill': the token has expired"):
        await knock(town.folder / "late", late)
    with pytest.raises(StudyError, match="joined already"):
        await town.invite("诊所")


async def test_an_older_protocol_is_refused_at_the_door_and_after_it_and_the_token_stays_good(
    town: Town, harvests: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"the other side speaks protocol {PROTOCOL - 1}, this coordinator {PROTOCOL}"
    token = await town.invite("mill")
    for agent in (agent_home, agent_service):
        monkeypatch.setattr(agent, "PROTOCOL", PROTOCOL - 1)
    with pytest.raises(TrustError, match=said) as refused:
        await knock(town.folder / "mill", token)
    assert refused.value.remedy == "Use the same version of Hansa on both sides"
    town.tables["mill"] = harvests["bremen"]
    monkeypatch.setattr(agent_home, "PROTOCOL", PROTOCOL)
    await knock(town.folder / "mill", token)
    town.begin("mill")
    with pytest.raises(TrustError, match=said):
        await asyncio.wait_for(town.tasks.pop("mill"), 20)
    monkeypatch.setattr(agent_service, "PROTOCOL", PROTOCOL)
    town.begin("mill")
    await town.present("mill")


async def test_of_two_tokens_in_one_name_only_the_first_lets_a_party_in(town: Town) -> None:
    one, other = [await town.invite("mill") for _ in range(2)]
    await knock(town.folder / "one", one)
    with pytest.raises(TrustError, match="a party of that name has joined already"):
        await knock(town.folder / "other", other)


async def test_the_tokens_of_a_party_go_with_it(town: Town) -> None:
    one, other = [await town.invite("mill") for _ in range(2)]
    await knock(town.folder / "one", one)
    await remove(town, "mill")
    with pytest.raises(TrustError, match="does not know the token"):
        await knock(town.folder / "other", other)


async def test_a_token_used_by_two_at_once_lets_one_in(town: Town) -> None:
    token = await town.invite("mill")
    folders = [town.folder / str(number) for number in range(3)]
    outcomes = await asyncio.gather(*(knock(f, token) for f in folders), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AgentHome", "TrustError", "TrustError"]


async def test_a_token_of_another_coordinator_is_refused_at_both_ends(town: Town, tmp_path: Path) -> None:
    other = type(town)(tmp_path / "other")
    await other.open()
    try:
        theirs = await other.invite("mill")
        # Another authority at that address: this party finds out before it says anything.
        with pytest.raises(TrustError, match="not the one that was joined"):
            await knock(tmp_path / "a", replace(theirs, address=town.running.address))
        ours = await town.invite("mill")
        # The right coordinator, and a secret that it never gave.
        with pytest.raises(TrustError, match="does not know the token"):
            await knock(tmp_path / "b", replace(ours, secret=theirs.secret))
    finally:
        await other.close()


# --- who may call what


async def test_a_token_holder_can_do_nothing_but_join(town: Town) -> None:
    token = await town.invite("mill")
    knocking = keys.new_key()
    channel = client_channel(
        token.address,
        key_pem=keys.key_to_pem(knocking),
        certificate_pem=pki.lobby_leaf(token.lobby_seed, knocking),
        root_pem=pki.trust_anchor(town.running.home.authority.public_key),
    )
    async with channel:
        for rpc in RPCS.values():
            if rpc is not JOIN:
                with pytest.raises(TrustError, match="is not for the role 'lobby'"):
                    await call(Client(channel), rpc)


async def test_a_party_cannot_act_as_operator_nor_look_into_runs_of_others(
    town: Town, harvests: Tables, study: Study, dial: Dial
) -> None:
    await town.settle({name: harvests[name] for name in ("bremen", "lübeck")})
    run = (await town.run(study(rounds=1))).id
    home = await town.join("上海", harvests["上海"])
    async with town.operator() as operator:
        kept = await operator.unary(RESULT, m.ResultRequest(run=run))
    async with dial(home) as client:
        for rpc in RPCS.values():
            if pki.PARTY not in rpc.roles:
                with pytest.raises(TrustError, match="is not for the role 'party'"):
                    await call(client, rpc)
        with pytest.raises(TrustError, match="does not take part in the run"):
            await client.unary(DESCRIBE, m.Describe(run=run))
        with pytest.raises(RunError, match="nothing that this peer may fetch"):
            async for _ in client.stream(FETCH, m.FetchRequest(digest=kept.checkpoint)):
                pass
    async with dial(town.home("bremen")) as client:
        assert (await client.unary(DESCRIBE, m.Describe(run=run))).federation
        with pytest.raises(RunError, match="nothing that this peer may fetch"):
            async for _ in client.stream(FETCH, m.FetchRequest(digest=kept.checkpoint)):
                pass


# --- removal


async def test_a_removed_party_is_out_at_once_and_its_certificate_for_ever(
    town: Town, harvests: Tables, study: Study, dial: Dial
) -> None:
    await town.settle(harvests)
    old = town.home("上海")
    await remove(town, "上海", "left the federation")
    with pytest.raises(TrustError, match="removed this party: left the federation"):
        await asyncio.wait_for(town.tasks["上海"], 20)
    async with dial(old) as client:
        for rpc in (DESCRIBE, RENEW):
            with pytest.raises(TrustError, match="this party was removed"):
                await call(client, rpc)
    again = town.begin("上海", home=old)
    with pytest.raises(TrustError, match="this party was removed"):
        await asyncio.wait_for(town.tasks["上海"], 20)
    assert again.home == old
    # Invited anew under the same name, with a new key; the old certificate stays out.
    new = await knock(town.folder / "anew", await town.invite("上海"))
    town.begin("上海", home=new)
    await town.present(*harvests)
    async with dial(old) as client:
        with pytest.raises(TrustError, match="has joined anew with another key"):
            await call(client, DESCRIBE)
    assert (await town.run(study(rounds=1))).status == "finished"


async def test_a_party_removed_in_a_round_is_left_out_of_it(town: Town, harvests: Tables, study: Study) -> None:
    await town.settle(harvests)
    held, reached = threading.Event(), asyncio.Event()
    loop, desk = asyncio.get_running_loop(), town.agents["上海"]._desk
    desk.work = lambda *what: (loop.call_soon_threadsafe(reached.set), held.wait(20), 1 / 0)[0]
    run = await town.submit(
        study(rounds=2, preprocessing=hs.Moments(standardise=False), evaluation=hs.Evaluate(every=0))
    )
    await asyncio.wait_for(reached.wait(), 20)
    await remove(town, "上海")
    held.set()
    ended = await town.watch(run)
    reasons = [event.body["reason"] for event in ended.events if event.kind == "refused"]
    assert reasons == ["removed: removed by the operator", "removed"]


# --- renewal


async def test_a_certificate_is_renewed_in_the_middle_of_a_run(
    town: Town, harvests: Tables, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town.settle(harvests)
    monkeypatch.setattr(agent_service, "RENEWAL_CHECK", 0.01)
    first = {name: town.home(name).certificate_pem for name in harvests}
    for name in harvests:  # so that the new interval counts from the beginning
        await town.end(name)
        town.begin(name)
    await town.present(*harvests)
    federation = study(rounds=12)
    run = await town.submit(federation)
    due = pki.renewal_due
    monkeypatch.setattr(pki, "renewal_due", lambda pem, **at: pem in first.values() or due(pem))
    ended = await town.watch(run)
    assert ended.parameters.tobytes() == federation.run(hs.Local(harvests)).parameters.tobytes()
    await town.until(lambda: all(town.home(name).certificate_pem != first[name] for name in harvests))
    await town.present(*harvests)


async def test_an_expired_certificate_ends_the_agent_with_the_way_out(
    town: Town, harvests: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town.settle(harvests)
    await town.end("bremen")

    def expired(pem: bytes, **at: object) -> None:
        raise TrustError("the certificate expired", remedy="Join again with a new token")

    monkeypatch.setattr(pki, "renewal_due", lambda pem: True)
    monkeypatch.setattr(pki, "require_valid", expired)
    town.begin("bremen")
    with pytest.raises(TrustError, match="expired"):
        await asyncio.wait_for(town.tasks["bremen"], 20)


# --- a coordinator that cannot be trusted


Ask = dict[str, Any]
LIES: dict[str, tuple[Callable[[Ask], object], str]] = {
    "past the clip": (lambda ask: ask.update(through="plain"), "or by another way"),
    "an undeclared field": (
        lambda ask: ask["fields"].append({**ask["fields"][0], "name": "rows"}),
        "other fields than the study declares",
    ),
    "a work of its own": (lambda ask: ask.update(work="dump"), "'dump' asks for other fields"),
    "another round": (lambda ask: ask.update(round=9), "other fields than the study declares"),
    "not an ask": (lambda ask: ask.clear(), "cannot be understood: it is malformed"),
    "another study": (lambda ask: ask.update(study=1), "not the one whose hash the ask names"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_agent_refuses_what_the_study_does_not_say_and_nothing_leaves(
    lie: str, town: Town, harvests: Tables, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town.settle(harvests)
    change, reason = LIES[lie]
    honest = town.running._work

    async def twisted(notice: Any) -> m.Work:
        work = m.Work()
        work.CopyFrom(await honest(notice))
        ask = json.loads(work.ask)
        change(ask)
        if ask.pop("study", None):
            work.federation = b"0" * 32
        work.ask = canonical(ask)
        work.work, work.round = ask.get("work", work.work), ask.get("round", work.round)
        return work

    monkeypatch.setattr(town.running, "_work", twisted)
    with pytest.raises(RunError, match=f"0 of 3 contributions could be counted.*{reason}"):
        await town.run(
            study(
                aggregation=hs.aggregation.clip(0.1),
                preprocessing=hs.Moments(standardise=False),
                evaluation=hs.Evaluate(every=0),
            )
        )
    for name in harvests:
        assert not town.tasks[name].done()
        left = (town.folder / name / "left.jsonl").read_bytes()
        lines = [json.loads(line) for line in left.splitlines()]
        assert {line["fields"] for line in lines if line["call"] == "Upload"} == {"reason"}


# --- the channel


async def test_on_loopback_no_proxy_is_asked(
    town: Town, harvests: Tables, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    await town.settle(harvests)
    assert (await town.run(study(rounds=1))).status == "finished"


async def test_an_operator_can_invite_and_remove_and_the_names_are_canonical(town: Town) -> None:
    await town.invite("Ko\u0308ln")
    async with town.operator() as client:
        with pytest.raises(StudyError, match="there is no party named 'Köln'"):
            await client.unary(REMOVE, m.RemoveRequest(party="Köln"))
        reply = await client.unary(INVITE, m.InviteRequest(party="Ko\u0308ln", lifetime_seconds=9))
    home = await knock(town.folder / "k", Token.decode(reply.token))
    assert home.party == "Köln"
    await remove(town, "Ko\u0308ln")
    assert town.running.driver.machine.guests["Köln"].state == "removed"
