"""What is sealed opens where it was sealed, as it was, with one of the keys; and in no other case."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from hansa.crypto import vault
from hansa.crypto.vault import CHUNK, MARK, DamagedError, Vault, kept_key
from hansa.errors import StoreError, UsageError

FIRST, SECOND = bytes(range(32)), bytes(range(1, 33))
HEAD = len(MARK) + 8 + 32


def sealed(body: bytes, *place: str | int, keys: tuple[bytes, ...] = (FIRST,)) -> bytes:
    return b"".join(Vault(keys).seal(body, *place))


def written(path: Path, *keys: bytes) -> Path:
    path.write_text("\n".join(base64.b64encode(key).decode() for key in keys) + "\n")
    return path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(vault, "CHUNK", 10)
    return 10


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7])
def test_it_opens_as_it_was_and_is_longer_by_a_head_and_a_tag_for_each_chunk(size: int) -> None:
    body = bytes(i * 7 % 251 for i in range(256)) * (size // 256 + 1)
    kept = sealed(body[:size], "blob", "r", 3)
    assert Vault([FIRST]).open(kept, "blob", "r", 3) == body[:size]
    assert len(kept) == HEAD + size + 16 * max(1, -(-size // CHUNK))
    assert body[:32] not in kept or size < 32


def test_the_same_body_is_never_sealed_alike() -> None:
    bodies = [sealed(b"weight", "answer", 1) for _ in range(100)]
    assert len({kept[:HEAD] for kept in bodies}) == len({kept[HEAD:] for kept in bodies}) == 100


def test_no_bit_of_it_can_be_changed() -> None:
    kept = sealed(b"twenty bytes in here", "answer", 1)
    for at in range(len(kept)):
        for bit in (1, 128):
            changed = kept[:at] + bytes([kept[at] ^ bit]) + kept[at + 1 :]
            with pytest.raises(StoreError):
                Vault([FIRST]).open(changed, "answer", 1)


def test_it_cannot_be_cut_prolonged_or_put_together_anew(small_chunks: int) -> None:
    step, open_ = small_chunks + 16, Vault([FIRST]).open
    kept, other = sealed(bytes(35), "answer", 1), sealed(bytes(35), "answer", 1)
    head, chunks = kept[:HEAD], [kept[HEAD + i * step :][:step] for i in range(4)]
    assert open_(head + b"".join(chunks), "answer", 1) == bytes(35)
    others = other[HEAD : HEAD + step]
    for wrong in ([], chunks[:1], chunks[:3], chunks[1:], [chunks[1], chunks[0], *chunks[2:]], [*chunks, chunks[3]],
                  [*chunks[:3], chunks[2]], [others, *chunks[1:]], [*chunks, b""[:0] + b"\0" * 16]):  # fmt: skip
        with pytest.raises(DamagedError):
            open_(head + b"".join(wrong), "answer", 1)
    for length in range(len(kept)):
        with pytest.raises(StoreError):
            open_(kept[:length], "answer", 1)


@pytest.mark.parametrize("place", [("answer", 2), ("answer",), ("answer", 1, ""), ("answe", "r", 1), ("memory", 1)])
def test_it_does_not_open_in_another_place(place: tuple[str | int, ...]) -> None:
    with pytest.raises(DamagedError, match=r"put in the place of another.*hansa agent restore"):
        Vault([FIRST]).open(sealed(b"x", "answer", 1), *place)


def test_the_first_key_seals_and_all_open() -> None:
    old, new = sealed(b"x", "a"), sealed(b"x", "a", keys=(SECOND, FIRST))
    assert Vault([SECOND, FIRST]).open(old, "a") == Vault([SECOND]).open(new, "a") == b"x"
    for keys, kept in (([FIRST], new), ([SECOND], old)):
        with pytest.raises(StoreError, match="with another storage key"):
            Vault(keys).open(kept, "a")


def test_without_a_key_nothing_is_sealed_and_nothing_sealed_is_taken_for_plain() -> None:
    plain = Vault()
    assert b"".join(plain.seal(b"x", "a")) == plain.open(b"x", "a") == b"x"
    with pytest.raises(StoreError, match=r"a/1 is encrypted, and no storage key was given.*--key-file FILE"):
        plain.open(sealed(b"x", "a", 1), "a", 1)


def test_with_a_key_what_is_not_sealed_is_refused_unless_it_is_to_be_sealed() -> None:
    strict = Vault([FIRST], "coordinator")
    with pytest.raises(StoreError, match=r"a is not encrypted.*hansa coordinator rekey"):
        strict.open(b"x", "a")
    strict.lenient = True
    assert strict.open(b"x", "a") == b"x"


def test_a_kept_key_is_sealed_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vault.VARIABLE, base64.b64encode(FIRST).decode())
    made = kept_key(tmp_path / "noise.key")
    assert kept_key(tmp_path / "noise.key") == made != (tmp_path / "noise.key").read_bytes()
    (tmp_path / "identity.key").write_bytes((tmp_path / "noise.key").read_bytes())
    with pytest.raises(DamagedError, match=r"identity\.key"):
        kept_key(tmp_path / "identity.key")
    monkeypatch.delenv(vault.VARIABLE)
    with pytest.raises(StoreError, match=r"noise\.key is encrypted"):
        kept_key(tmp_path / "noise.key")


def test_a_folder_remembers_where_the_file_of_its_keys_lies(tmp_path: Path) -> None:
    file, folder = written(tmp_path / "keys", SECOND, FIRST), tmp_path / "home"
    assert not Vault.of(folder)
    assert Vault.of(folder, file).open(sealed(b"x", "a"), "a") == b"x"
    assert Vault.of(folder).open(sealed(b"x", "a"), "a") == b"x"
    file.unlink()
    with pytest.raises(
        UsageError, match=r"storage key of .*home cannot be read from .*keys: No such file.*--key-file"
    ) as it:
        Vault.of(folder)
    assert "openssl" not in it.value.remedy  # another one would open nothing


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_a_key_that_does_not_open_the_folder_is_not_remembered(tmp_path: Path, encrypted: bool) -> None:
    right, wrong, folder = written(tmp_path / "right", FIRST), written(tmp_path / "wrong", SECOND), tmp_path / "home"
    (Vault.of(folder, right) if encrypted else Vault()).write(folder / "party.pem", b"key")
    before = [*folder.glob(vault.REMEMBERED)]
    for anew in (False, True):
        if encrypted or not anew:
            with pytest.raises(StoreError, match="with another storage key" if encrypted else "hansa agent rekey"):
                Vault.of(folder, wrong, anew)
    assert [*folder.glob(vault.REMEMBERED)] == before
    assert Vault.of(folder).read(folder / "party.pem") == b"key"
    if not encrypted:
        assert Vault.of(folder, wrong, anew=True).lenient
        assert (folder / vault.REMEMBERED).exists()


def test_a_lost_key_of_an_encrypted_folder_is_not_to_be_made_anew(tmp_path: Path) -> None:
    Vault([FIRST]).write(tmp_path / "authority.key", b"key")
    with pytest.raises(UsageError, match=r"from .*gone: No such file") as caught:
        Vault.of(tmp_path, tmp_path / "gone")
    assert "Only the key that encrypted it opens it" in caught.value.remedy


@pytest.mark.parametrize("said", ["", "short", base64.b64encode(bytes(31)).decode(), "!" * 44, "é" * 44])
def test_what_is_no_key_is_refused(tmp_path: Path, said: str) -> None:
    (tmp_path / "keys").write_text(said, "utf-8")
    with pytest.raises(UsageError, match=r"cannot be read from .*keys: a key is 32 bytes in base64.*openssl rand"):
        Vault.of(tmp_path, tmp_path / "keys")


def test_what_is_no_key_in_the_environment_is_said_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vault.VARIABLE, "short")
    with pytest.raises(UsageError, match=f"cannot be read from {vault.VARIABLE}: a key is 32 bytes in base64"):
        Vault.of(tmp_path)


def test_a_kept_key_that_was_cut_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "noise.key").write_bytes(bytes(31))
    with pytest.raises(DamagedError, match=r"noise\.key is damaged: it holds 31 bytes.*hansa agent restore"):
        kept_key(tmp_path / "noise.key")
