"""Who comes back from a backup knows less than it did, and uses no number, no noise and no charge twice."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hansa as hs
from hansa.agent.home import AgentHome
from hansa.agent.offers import Offers
from hansa.agent.store import AgentStore
from hansa.backup import backup, restored
from hansa.coordinator import store
from hansa.crypto.vault import MARK, VARIABLE
from hansa.errors import RunError, TrustError, UnreachableError
from hansa.wire import chunks

Tables = dict[str, hs.Table]


async def gone(town: Any, name: str) -> None:
    await town.end(name)
    await town.until(lambda: name not in town.listening())


@pytest.mark.parametrize("killed", [False, True], ids=["same coordinator", "restarted coordinator"])
async def test_an_agent_from_an_old_backup_refuses_until_its_owner_confirms(
    town: Any, harvests: Tables, study: Callable[..., hs.Federation], killed: bool
) -> None:
    await town.settle(harvests)
    name = next(iter(harvests))
    keys: dict[str, Any] = {"rounds": 2, "cohort": hs.All(minimum=len(harvests))}
    assert (await town.run(study(**keys))).status == "finished"
    folder, backup = town.folder / name, town.folder / "backup"
    await gone(town, name)
    shutil.copytree(folder, backup)
    town.begin(name)
    await town.present(*harvests)
    assert (await town.run(study(**keys))).status == "finished"  # of which the backup knows nothing
    await gone(town, name)
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
    if killed:
        await town.kill()
        await town.open()
    agent = town.begin(name)
    await town.present(*harvests)
    await town.until(lambda: bool(agent._ledger.missing))
    with pytest.raises(RunError, match="ledger is older than its answers"):
        await town.run(study(**keys))
    await gone(town, name)

    offers = Offers(folder)
    assert list(offers.privacy()["missing"].values())
    offers.take_as_spent()
    offers.close()
    agent = town.begin(name)
    await town.present(*harvests)
    assert (await town.run(study(**keys))).status == "finished"
    assert not agent._ledger.missing  # what was confirmed is not asked again


async def test_an_agent_that_remembers_everything_is_never_in_doubt(
    town: Any, harvests: Tables, study: Callable[..., hs.Federation]
) -> None:
    await town.settle(harvests)
    assert (await town.run(study(rounds=2))).status == "finished"
    for name in harvests:
        await town.end(name)
    await town.kill()
    await town.open()
    for name in harvests:
        town.begin(name)
    await town.present(*harvests)
    assert (await town.run(study(rounds=2))).status == "finished"
    assert not any(agent._ledger.missing for agent in town.agents.values())


def kept(folder: Path) -> list[bytes]:
    """All bytes in the columns and files that are to be encrypted."""
    files = [path.read_bytes() for path in folder.glob("blobs/**/*") if path.is_file()]
    with contextlib.closing(sqlite3.connect(next(folder.glob("*.db")))) as database:
        for table in ("blob", "answer", "memory", "seat"):
            with contextlib.suppress(sqlite3.OperationalError):
                files += [body for (body,) in database.execute(f"SELECT body FROM {table}") if body is not None]
    return files


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
async def test_a_run_goes_on_from_a_backup_under_a_new_name_with_the_same_bits(
    town: Any,
    harvests: Tables,
    study: Callable[..., hs.Federation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encrypted: bool,
) -> None:
    monkeypatch.setattr(store, "INLINE", 64)  # most blobs lie in files
    home = tmp_path / "coordinator"
    if encrypted:
        await town.kill()
        shutil.rmtree(home)
        monkeypatch.setenv(VARIABLE, base64.b64encode(secrets.token_bytes(32)).decode())
        town.port = 0
        await town.open()
    await town.settle(harvests)
    unused = await town.invite("later")
    federation = study(rounds=6, cohort=hs.All(minimum=len(harvests)))
    run = await town.submit(federation)
    live = town.running.driver.machine.runs[run]
    await town.until(lambda: live.progress.version >= 2)
    await asyncio.to_thread(backup, home, tmp_path / "backup", {"program": "coordinator", "made": "noon"})
    whole = await town.watch(run)  # of which the backup knows nothing
    assert whole.status == "finished"
    everything = [body for folder in (home, *(tmp_path / name for name in harvests)) for body in kept(folder)]
    assert everything
    assert all(body.startswith(MARK) == encrypted for body in everything)

    await town.kill()
    shutil.move(home, tmp_path / "lost")
    with restored(tmp_path / "backup", home, "coordinator") as (part, said):
        (part / "restored").write_text(said["made"])
    await town.open()
    [again] = town.running.driver.machine.runs
    parent, _, number = again.rpartition("~")
    version = int(number.partition("-")[0])
    assert parent == run
    assert version >= 1
    after = await town.watch(again)
    assert after.status == "finished"
    assert after.parameters.tobytes() == whole.parameters.tobytes()
    [event] = [event for event in after.events if event.kind == "restored"]
    assert event.body == {"parent": run, "run": again, "backup": "noon"}
    with pytest.raises(RunError, match=f"stopped: .*backup of noon; it goes on as {again}.*`hansa watch {again}`"):
        await town.watch(run)
    with pytest.raises(RunError, match=r"is stopped: there is nothing to resume.*hansa runs"):
        await asyncio.to_thread(town.remote.resume, run)
    with pytest.raises(TrustError, match="was used already"):
        await AgentHome.join(tmp_path / "later", unused, lambda *_: None)
    for name in harvests:  # charged anew
        await gone(town, name)
        with contextlib.closing(AgentStore(town.folder / name)) as opened:
            charged = [(row["run"], row["version"]) for row in opened.rows("charge")]
        assert len(charged) == len(set(charged))
        assert {(again, v) for v in range(version, version + 3)} < set(charged)
    assert not (home / "restored").exists()


async def test_certificates_that_were_renewed_since_the_backup_are_good(
    town: Any, harvests: Tables, study: Callable[..., hs.Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, home = next(iter(harvests)), tmp_path / "coordinator"
    await town.settle({name: harvests[name]})
    await asyncio.to_thread(backup, home, tmp_path / "backup", {"program": "coordinator", "made": "noon"})
    await gone(town, name)
    for _ in range(3):  # after which the certificate of the backup is good no more
        with monkeypatch.context() as patch:
            patch.setattr("hansa.agent.service.pki.renewal_due", lambda pem: True)
            town.begin(name)
            await town.until(lambda: not town.tasks[name].done() and len(town.said[name]) > 0)
            await asyncio.sleep(0.05)
            await town.end(name)
    await town.kill()
    shutil.move(home, tmp_path / "lost")
    with restored(tmp_path / "backup", home, "coordinator") as (part, said):
        (part / "restored").write_text(said["made"])
    await town.open()
    town.begin(name)
    await town.present(name)
    await gone(town, name)
    with monkeypatch.context() as patch:
        patch.setattr("hansa.agent.service.pki.renewal_due", lambda pem: True)
        town.begin(name)
        await town.until(lambda: "*" not in town.running.driver.machine.guests[name].serial)


async def test_an_agent_from_a_backup_draws_other_noise_and_waits_for_its_owner(
    town: Any, harvests: Tables, study: Callable[..., hs.Federation], tmp_path: Path
) -> None:
    await town.settle(harvests)
    name, federation = next(iter(harvests)), study(rounds=1, cohort=hs.All(minimum=len(harvests)))
    folder = town.folder / name
    await asyncio.to_thread(backup, folder, tmp_path / "backup", {"program": "agent", "made": "noon"})  # while it runs
    await gone(town, name)
    key = (folder / "noise.key").read_bytes()
    shutil.move(folder, tmp_path / "lost")
    with restored(tmp_path / "backup", folder, "agent") as (part, said):
        assert not (part / "noise.key").exists()
        with contextlib.closing(AgentStore(part)) as opened:
            opened.restored(said["made"])
    town.begin(name)
    await town.present(*harvests)
    assert (folder / "noise.key").read_bytes() != key
    with pytest.raises(RunError, match="came back from a backup of noon"):
        await town.run(federation)
    await gone(town, name)
    with contextlib.closing(Offers(folder)) as offers:
        assert offers.privacy()["restored"] == "noon"
        offers.take_as_spent()
        assert not offers.privacy()["restored"]
        assert offers.privacy()["spent"] == 0  # nothing was lost that the coordinator knows of
    town.begin(name)
    await town.present(*harvests)
    assert (await town.run(federation)).status == "finished"


async def test_one_of_two_agents_with_the_same_key_is_refused(town: Any, harvests: Tables) -> None:
    name = next(iter(harvests))
    await town.settle({name: harvests[name]})
    first = town.tasks[name]
    shutil.copytree(town.folder / name, town.folder / "copy")
    town.begin(name, home=AgentHome.open(town.folder / "copy"))
    try:
        with pytest.raises(
            TrustError, match=f"'{name}': another program with this party's key took its place.*Stop one"
        ):
            await asyncio.wait_for(first, 30)
    finally:
        first.cancel()
    assert not town.tasks[name].done()
    await town.present(name)


async def test_an_agent_that_is_started_anew_takes_its_own_place(town: Any, harvests: Tables) -> None:
    name = next(iter(harvests))
    await town.settle({name: harvests[name]})
    for _ in range(3):
        before = town.running._listeners[name]
        town.tasks[name].cancel()  # and the coordinator need not have seen it go
        with contextlib.suppress(asyncio.CancelledError, UnreachableError):
            await town.tasks[name]
        town.begin(name)
        await town.until(lambda before=before: town.running._listeners.get(name) not in (None, before))
    assert not town.tasks[name].done()


async def test_a_large_answer_is_hidden_on_the_disk_while_it_arrives(
    town: Any, harvests: Tables, study: Callable[..., hs.Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "INLINE", 16)
    for small in ("CHUNK", "INLINE"):  # all that leaves a party leaves it in chunks
        monkeypatch.setattr(chunks, small, 64)
    await town.kill()
    shutil.rmtree(tmp_path / "coordinator")
    monkeypatch.setenv(VARIABLE, base64.b64encode(secrets.token_bytes(32)).decode())
    town.port, passed, arrived = 0, list[bytes](), list[bytes]()
    finish, accept = chunks.Receiver.finish, chunks.Receiver.accept

    def spy(receiver: chunks.Receiver) -> Any:
        if receiver._path:
            passed.append(receiver._path.read_bytes())
        return finish(receiver)

    def heard(receiver: chunks.Receiver, chunk: bytes) -> None:
        if receiver._path:
            arrived.append(chunk)
        accept(receiver, chunk)

    monkeypatch.setattr(chunks.Receiver, "finish", spy)
    monkeypatch.setattr(chunks.Receiver, "accept", heard)
    await town.open()
    await town.settle(harvests)
    federation = study(rounds=2, evaluation=hs.Evaluate(every=2))
    ended = await town.run(federation)
    assert ended.parameters.tobytes() == federation.run(hs.Local(harvests)).parameters.tobytes()
    assert len(passed) >= 6
    assert not [chunk for chunk in arrived if len(chunk) == 64 and any(chunk in body for body in passed)]
    assert not list((tmp_path / "coordinator").rglob("*.part"))
