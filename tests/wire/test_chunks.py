import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.crypto.masks import opened
from hansa.errors import ContributionError, UnreachableError
from hansa.tensors import digest
from hansa.wire.chunks import CHUNK, Receiver, split

BODY = bytes(range(256)) * 4096 * 2 + b"the end"  # 2 MiB and a little


@given(st.integers(0, len(BODY)))
def test_chunks_from_any_offset_make_up_the_rest(offset: int):
    found = [*split(memoryview(BODY), offset)]
    assert b"".join(found) == BODY[offset:]
    assert {len(chunk) for chunk in found[:-1]} <= {CHUNK}
    assert all(found)


def test_what_gathers_in_a_file_can_be_hidden(tmp_path: Path):
    key, path, body = bytes(range(32)), tmp_path / "body", bytes(range(250)) * 40
    for begin in range(0, len(body), 2500):  # each receiver goes on where the one before broke off
        receiver = Receiver(len(body), digest(body), path, key)
        assert receiver.offset == begin
        receiver.accept(body[begin : begin + 2500])
        receiver.close()
        assert body[begin : begin + 20] not in path.read_bytes()
    beside = tmp_path / "beside"
    shutil.copy(path, beside)
    with pytest.raises(UnreachableError, match="begin anew"):  # as after a restart, when the key is another
        Receiver(len(body), digest(body), beside, bytes(32)).finish()
    assert Receiver(len(body), digest(body), path, key).finish() == path
    assert opened(key).update(path.read_bytes()) == body


@pytest.mark.parametrize("body", [b"", b"x", BODY])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_body_arrives_whole(tmp_path: Path, body: bytes, on_disk: bool):
    path = tmp_path / "blobs" / "body" if on_disk else None
    receiver = Receiver(len(body), digest(body), path)
    for chunk in split(memoryview(body)):
        receiver.accept(chunk)
    found = receiver.finish()
    assert (found.read_bytes() if isinstance(found, Path) else found) == body
    if path:
        assert found == path
        assert list(path.parent.iterdir()) == [path]


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path: Path):
    path = tmp_path / "body"
    first = Receiver(len(BODY), digest(BODY), path)
    first.accept(BODY[:CHUNK])
    first.close()
    second = Receiver(len(BODY), digest(BODY), path)
    assert second.offset == CHUNK
    for chunk in split(BODY, second.offset):
        second.accept(chunk)
    assert second.finish() == path
    assert path.read_bytes() == BODY


def test_a_part_that_is_longer_than_the_body_is_begun_again(tmp_path: Path):
    path = tmp_path / "body"
    (tmp_path / "body").write_bytes(b"of another body")
    receiver = Receiver(3, digest(b"abc"), path)
    assert receiver.offset == 0
    receiver.accept(b"abc")
    receiver.finish()
    assert path.read_bytes() == b"abc"


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_body_with_another_digest_is_thrown_away(tmp_path: Path, on_disk: bool):
    receiver = Receiver(3, digest(b"abc"), tmp_path / "body" if on_disk else None)
    receiver.accept(b"abd")
    with pytest.raises(ContributionError, match="digest differs"):
        receiver.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_kept_beginning_that_suffered_is_sent_again_and_blamed_on_nobody(tmp_path: Path):
    path = tmp_path / "body"
    begun = Receiver(3, digest(b"abc"), path)
    begun.accept(b"a")
    begun.close()
    with path.open("r+b") as file:
        file.write(b"\0")
    damaged = Receiver(3, digest(b"abc"), path)
    assert damaged.offset == 1
    damaged.accept(b"bc")
    with pytest.raises(UnreachableError, match="begin anew"):
        damaged.finish()
    again = Receiver(3, digest(b"abc"), path)
    again.accept(b"abc")
    assert again.finish() == path


def test_a_file_of_just_the_size_is_written_over_and_needs_no_room(tmp_path: Path):
    path = tmp_path / "body"
    path.write_bytes(b"xyz")
    inode = path.stat().st_ino
    receiver = Receiver(3, digest(b"abc"), path)
    assert (receiver.offset, receiver.lacking) == (0, 0)
    receiver.accept(b"ab")
    receiver.close()
    again = Receiver(3, digest(b"abc"), path)
    assert again.offset == 2
    again.accept(b"c")
    assert again.finish().read_bytes() == b"abc"
    assert path.stat().st_ino == inode


def test_what_a_full_disk_did_not_take_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    receiver = Receiver(6, digest(b"abcdef"), tmp_path / "body")
    assert receiver.lacking == 6
    receiver.accept(b"ab")
    file = receiver._file
    assert file
    with monkeypatch.context() as full:
        full.setattr(receiver, "_file", SimpleNamespace(write=lambda data: file.write(data[:1])))
        with pytest.raises(OSError, match="No space left"):
            receiver.accept(b"cd")
    receiver.close()
    again = Receiver(6, digest(b"abcdef"), tmp_path / "body")
    again.close()
    assert again.offset == 2


def test_what_is_discarded_leaves_nothing(tmp_path: Path):
    receiver = Receiver(3, digest(b"abc"), tmp_path / "body")
    receiver.accept(b"ab")
    receiver.discard()
    receiver.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_is_too_short_is_kept_to_be_resumed(tmp_path: Path):
    receiver = Receiver(3, digest(b"abc"), tmp_path / "body")
    receiver.accept(b"ab")
    with pytest.raises(ContributionError, match="only 2 of 3 bytes"):
        receiver.finish()
    again = Receiver(3, digest(b"abc"), tmp_path / "body")
    again.close()
    assert again.offset == 2


def test_who_ends_when_another_has_the_file_leaves_it_alone(tmp_path: Path):
    first = Receiver(3, digest(b"abc"), tmp_path / "body")
    first.accept(b"abc")
    first.close()
    late = Receiver(3, digest(b"abc"), tmp_path / "body")
    late.close()
    again = Receiver(3, digest(b"abc"), tmp_path / "body")
    with pytest.raises(UnreachableError, match="broken off"):
        late.finish()
    assert again.finish() == tmp_path / "body"
    assert (tmp_path / "body").read_bytes() == b"abc"


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"abcd", "more arrives than the 3 bytes"), (b"", "a chunk of 0 bytes"), (bytes(CHUNK + 1), "is none")],
)
def test_a_chunk_that_does_not_fit_is_refused(data: bytes, reason: str):
    receiver = Receiver(3, digest(b"abc"))
    with pytest.raises(ContributionError, match=reason):
        receiver.accept(data)
    assert receiver.offset == 0


def test_a_repeated_chunk_is_refused():
    receiver = Receiver(2, digest(b"ab"))
    receiver.accept(b"a")
    receiver.accept(b"a")
    with pytest.raises(ContributionError, match="digest differs"):
        receiver.finish()
