import re

import pytest
from cryptography.hazmat.primitives import hashes, hmac

from hansa.crypto import agreement
from hansa.errors import TrustError


def test_both_sides_agree_and_a_third_does_not():
    """RFC 7748, section 6.1."""
    b = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    public_b = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    public_a = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert agreement.public(b).hex() == public_b
    assert agreement.agree(b, [bytes.fromhex(public_a)]) == [bytes.fromhex(shared)]
    mine, other = agreement.public(b"a" * 32), bytes.fromhex(public_b)
    assert agreement.agree(b"a" * 32, [other]) == agreement.agree(b, [mine])
    assert agreement.agree(b"a" * 32, [other]) != agreement.agree(b"c" * 32, [other])


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31)])
def test_a_point_of_small_order_is_refused(point):
    with pytest.raises(TrustError, match="not one to agree with"):
        agreement.agree(b"a" * 32, [point])


def test_a_derived_key_is_hkdf_and_depends_on_everything():
    def extract(key, text):
        made = hmac.HMAC(key, hashes.SHA256())
        made.update(text)
        return made.finalize()

    want = extract(extract(b"salt" * 8, b"s" * 32), b"hansa mask\x01")
    assert agreement.derive(b"s" * 32, b"salt" * 8, b"mask") == want
    others = [(b"t" * 32, b"salt" * 8, b"mask"), (b"s" * 32, b"tlas" * 8, b"mask"), (b"s" * 32, b"salt" * 8, b"seal")]
    assert want not in [agreement.derive(*other) for other in others]


def test_a_digest_knows_where_its_parts_end():
    known = {agreement.digest(b"p", *parts) for parts in [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b"")]}
    assert len(known | {agreement.digest(b"q", b"abc")}) == 5
    framed = agreement.digest(b"p", b"a\x001\x00b")
    assert framed != agreement.digest(b"p", b"a", b"b")


def test_a_seal_opens_under_its_key_place_and_header_only():
    sealed = agreement.seal(b"k" * 32, 1, b"text", b"header")
    assert len(sealed) == 4 + agreement.TAG
    assert agreement.unseal(b"k" * 32, 1, sealed, b"header") == b"text"
    for wrong in (
        (b"j" * 32, 1, sealed, b"header"), (b"k" * 32, 0, sealed, b"header"),
        (b"k" * 32, 1, sealed, b"Header"), (b"k" * 32, 1, sealed[:-1] + b"x", b"header"),
    ):  # fmt: skip
        assert agreement.unseal(*wrong) is None


def test_a_signature_is_for_one_purpose_and_one_text():
    me = agreement.Identity(b"i" * 32)
    said = me.sign(b"roster", b"text")
    assert agreement.signed(me.public, said, b"roster", b"text")
    other = agreement.Identity(b"j" * 32).public
    for wrong in (
        (me.public, said, b"survivors", b"text"), (me.public, said, b"roster", b"texts"),
        (other, said, b"roster", b"text"), (me.public, said[:-1], b"roster", b"text"),
        (b"", said, b"roster", b"text"),
    ):  # fmt: skip
        assert not agreement.signed(*wrong)


def test_a_fingerprint_is_eight_words_that_can_be_said():
    said = agreement.words(b"k" * 32)
    assert re.fullmatch(r"([bdfghjklmnprstvz][aiou]){2}[bdfghjklmnprstvz]( \w{5}){7}", said)
    assert said == agreement.words(b"k" * 32)
    words = {word for i in range(256) for word in agreement.words(bytes([i]) * 32).split()}
    assert len(words) > 1900  # of 2048 drawn from 65,536
    assert len({agreement.words(i.to_bytes(32, "big")) for i in range(2000)}) == 2000
