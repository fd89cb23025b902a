"""The agent's folder: never a coordinator's."""

from __future__ import annotations

from pathlib import Path

import pytest

from hansa.agent.home import AgentHome
from hansa.agent.store import AgentStore
from hansa.coordinator.home import CoordinatorHome
from hansa.errors import StoreError, TrustError


async def test_an_agent_does_not_take_over_a_coordinators_folder_nor_spend_its_token(tmp_path: Path) -> None:
    coordinator = CoordinatorHome.open(tmp_path, "hanse")
    before = (tmp_path / "authority.pem").read_bytes()
    left: list[str] = []
    token = coordinator.token("127.0.0.1:1")
    with pytest.raises(StoreError, match="is a coordinator's") as caught:
        await AgentHome.join(tmp_path, token, lambda call, data: left.append(call))
    assert str(tmp_path) in caught.value.message
    assert "--home" in caught.value.remedy
    assert left == []
    with pytest.raises(StoreError, match="is a coordinator's"):
        AgentHome.open(tmp_path)
    home = AgentHome(tmp_path, "bremen", "hanse", "127.0.0.1:1", b"key", b"certificate", b"root")
    with pytest.raises(StoreError, match="is a coordinator's"):
        home.save()
    assert (tmp_path / "authority.pem").read_bytes() == before


def test_a_folder_in_which_nobody_joined_asks_for_a_token(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="no party has joined"):
        AgentHome.open(tmp_path)


def test_who_has_joined_has_a_ledger_and_an_identity_and_is_given_no_others(tmp_path: Path) -> None:
    home = AgentHome(tmp_path, "bremen", "hanse", "127.0.0.1:1", b"key\n", b"certificate", b"root")
    home.save()
    own = home.identity
    home.save()
    assert home.identity.public == own.public
    AgentStore(tmp_path).close()
    for path in tmp_path.glob("agent.db*"):
        path.unlink()
    with pytest.raises(StoreError, match=r"agent\.db is missing.*hansa agent restore"):
        AgentStore(tmp_path)
    assert not (tmp_path / "agent.db").exists()
    (tmp_path / "identity.key").unlink()
    with pytest.raises(StoreError, match=r"identity\.key is missing.*hansa agent restore"):
        _ = home.identity


def test_a_file_without_a_certificate_is_damaged(tmp_path: Path) -> None:
    certificate = b"-----BEGIN CERTIFICATE-----\n"
    home = AgentHome(tmp_path, "bremen", "hanse", "127.0.0.1:1", b"key\n", certificate, b"root")
    home.save()
    assert AgentHome.open(tmp_path) == home
    (tmp_path / "party.pem").write_bytes(b"key\n")
    with pytest.raises(StoreError, match="is damaged"):
        AgentHome.open(tmp_path)
