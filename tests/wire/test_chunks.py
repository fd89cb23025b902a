from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.crypto.masks import opened
from hansa.errors import ContributionError, UnreachableError
from hansa.wire import chunks
from hansa.wire.chunks import CHUNK, Receiver, digest, uploaded
from hansa.wire.messages import Chunk, UploadPart


def split(body: bytes | memoryview, offset: int = 0) -> list[Chunk]:
    return [Chunk.FromString(chunk) for chunk in chunks.split(body, offset)]


BODY = bytes(range(256)) * 4096 * 2 + b"the end"  # 2 MiB and a little


@given(st.integers(0, len(BODY)))
def test_chunks_from_any_offset_make_up_the_rest(offset: int):
    found = split(BODY, offset)
    assert b"".join(chunk.data for chunk in found) == BODY[offset:]
    assert all(len(chunk.data) <= CHUNK for chunk in found)
    assert [chunk.offset for chunk in found] == list(range(offset, len(BODY), CHUNK))


@pytest.mark.parametrize("offset", [0, 1, 127, 128, CHUNK, 300_000_000])
@pytest.mark.parametrize("size", [1, 127, 128, 16_384, CHUNK])
def test_chunks_are_the_bytes_that_protobuf_would_write(offset: int, size: int):
    body = np.zeros(offset + size, np.uint8)
    body[offset:] = 7
    (written,) = chunks.split(body.data, offset)
    chunk = Chunk(offset=offset, data=bytes([7]) * size)
    assert written == chunk.SerializeToString()
    assert uploaded(written) == UploadPart(chunk=chunk).SerializeToString()


def test_what_gathers_in_a_file_can_be_hidden(tmp_path: Path):
    key, path, body = bytes(range(32)), tmp_path / "body", bytes(range(250)) * 40
    for begin in range(0, len(body), 2500):  # each receiver goes on where the one before broke off
        receiver = Receiver(len(body), digest(body), path, key)
        assert receiver.offset == begin
        receiver.accept(Chunk(offset=begin, data=body[begin : begin + 2500]))
        receiver.close()
        assert body[begin : begin + 20] not in path.read_bytes()
    assert Receiver(len(body), digest(body), path, key).finish() == path
    assert opened(key).update(path.read_bytes()) == body
    with pytest.raises(UnreachableError, match="begin anew"):  # as after a restart, when the key is another
        Receiver(len(body), digest(body), path, bytes(32)).finish()


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
    first.accept(split(BODY)[0])
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
    receiver.accept(Chunk(offset=0, data=b"abc"))
    receiver.finish()
    assert path.read_bytes() == b"abc"


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_body_with_another_digest_is_thrown_away(tmp_path: Path, on_disk: bool):
    receiver = Receiver(3, digest(b"abc"), tmp_path / "body" if on_disk else None)
    receiver.accept(Chunk(offset=0, data=b"abd"))
    with pytest.raises(ContributionError, match="digest differs"):
        receiver.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_kept_beginning_that_suffered_is_sent_again_and_blamed_on_nobody(tmp_path: Path):
    (tmp_path / "body").write_bytes(b"\0")
    damaged = Receiver(3, digest(b"abc"), tmp_path / "body")
    damaged.accept(Chunk(offset=1, data=b"bc"))
    with pytest.raises(UnreachableError, match="begin anew"):
        damaged.finish()
    again = Receiver(3, digest(b"abc"), tmp_path / "body")
    again.accept(Chunk(offset=0, data=b"abc"))
    assert again.finish() == tmp_path / "body"


def test_what_is_discarded_leaves_nothing(tmp_path: Path):
    receiver = Receiver(3, digest(b"abc"), tmp_path / "body")
    receiver.accept(Chunk(offset=0, data=b"ab"))
    receiver.discard()
    receiver.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_is_too_short_is_kept_to_be_resumed(tmp_path: Path):
    receiver = Receiver(3, digest(b"abc"), tmp_path / "body")
    receiver.accept(Chunk(offset=0, data=b"ab"))
    with pytest.raises(ContributionError, match="only 2 of 3 bytes"):
        receiver.finish()
    again = Receiver(3, digest(b"abc"), tmp_path / "body")
    again.close()
    assert again.offset == 2


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (1, b"a", "begins at 1, not at 0"),
        (0, b"abcd", "more arrives than the 3 bytes"),
        (0, b"", "a chunk of 0 bytes"),
        (0, bytes(CHUNK + 1), "is none"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused(offset: int, data: bytes, reason: str):
    receiver = Receiver(3, digest(b"abc"))
    with pytest.raises(ContributionError, match=reason):
        receiver.accept(Chunk(offset=offset, data=data))
    assert receiver.offset == 0


def test_a_repeated_chunk_is_refused():
    receiver = Receiver(2, digest(b"ab"))
    receiver.accept(Chunk(offset=0, data=b"a"))
    with pytest.raises(ContributionError, match="begins at 0, not at 1"):
        receiver.accept(Chunk(offset=0, data=b"a"))
