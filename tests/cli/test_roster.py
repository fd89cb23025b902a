"""Who is who: identities are shown as words, and count once somebody has confirmed them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hansa.agent.home import AgentHome
from hansa.agent.offers import Offers
from hansa.agent.store import AgentStore
from hansa.crypto import keys, pki
from hansa.crypto.agreement import Identity, words
from hansa.database import Put

OTHER = Identity(b"2" * 32).public
SAID = words(OTHER)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    authority, key = pki.Authority.create("hanse"), keys.new_key()
    own = keys.key_to_pem(key), authority.issue(keys.request(key), role=pki.PARTY, name="bremen")
    AgentHome(tmp_path, "bremen", "hanse", "127.0.0.1:1", *own, authority.certificate_pem).save()
    return tmp_path


def show(home: Path) -> None:
    """Let a roster have been refused for the identity of another party."""
    with contextlib.closing(AgentStore(home)) as store:
        store.apply([Put("member", {"name": "danzig", "identity": OTHER})])


def pins(home: Path) -> dict[str, str]:
    with contextlib.closing(AgentStore(home)) as store:
        return store.pins()


def test_an_identity_that_was_read_out_counts(home: Path, hansa: Callable[..., Any]) -> None:
    show(home)
    before = hansa("agent", "status", "--home", home)
    own = words(Identity((home / "identity.key").read_bytes()).public)
    assert before.document["identity"] == own
    assert own in before.said
    assert before.document["roster"] == [{"party": "danzig", "words": SAID, "confirmed": False}]
    assert pins(home) == {}
    assert hansa("agent", "confirm", "danzig", *SAID.upper().split(), "--home", home).status == 0
    assert pins(home) == {"danzig": SAID}
    assert hansa("agent", "status", "--home", home).document["roster"][0]["confirmed"] is True


def test_a_coordinator_that_shows_another_identity_is_found_out(home: Path, hansa: Callable[..., Any]) -> None:
    show(home)
    wrong = words(Identity(b"3" * 32).public)
    answer = hansa("agent", "confirm", "danzig", *wrong.split(), "--home", home)
    assert answer.status == 5
    assert SAID in answer.message
    assert pins(home) == {}


def test_an_identity_may_be_confirmed_before_it_was_seen(home: Path, hansa: Callable[..., Any]) -> None:
    assert hansa("agent", "confirm", "danzig", *SAID.split(), "--home", home).status == 0
    [other] = hansa("agent", "status", "--home", home).document["roster"]
    assert other == {"party": "danzig", "words": SAID, "confirmed": True}


def test_what_is_no_identity_is_refused(home: Path, hansa: Callable[..., Any]) -> None:
    answer = hansa("agent", "confirm", "danzig", "zabod", "zapup", "--home", home)
    assert (answer.status, answer.remedy) == (2, "It is eight words of five letters")


def test_a_roster_is_read_from_a_file_and_company_is_remembered(home: Path, hansa: Callable[..., Any]) -> None:
    file = home / "roster.txt"
    file.write_text(f'# of 2026\ndanzig = "{SAID}"\n', encoding="utf-8")
    start = ("agent", "start", "--home", home, "--roster", file, "--honest", 2)
    assert "nothing is on offer" in hansa(*start).message
    with contextlib.closing(Offers(home)) as offers:
        assert offers.roster() == [{"party": "danzig", "words": SAID, "confirmed": True}]
    with contextlib.closing(AgentStore(home)) as store:
        assert store.honest() == 2
    file.write_text("danzig zabod\n", encoding="utf-8")
    assert "cannot be read" in hansa(*start).message
    file.write_text('danzig = "zabod"\n', encoding="utf-8")
    assert "is no identity" in hansa(*start).message
    assert hansa("agent", "start", "--home", home, "--honest", 0).status == 2
