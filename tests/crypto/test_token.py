import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.crypto import pki
from hansa.crypto.keys import derived_key, new_key, point
from hansa.crypto.token import PREFIX, Token, secret_hash, split_address
from hansa.errors import TrustError, UsageError

SEED = bytes(range(16))


def a_token(address: str = "fl.example.org:8443") -> Token:
    return Token.new(address, authority_key=point(new_key().public_key()), lobby_seed=SEED)


KEY = point(derived_key(SEED, purpose="a test").public_key())
ALWAYS_THE_SAME = Token("fl.example.org:8443", KEY, SEED, SEED).encode()


@pytest.mark.parametrize("address", ["127.0.0.1:8443", "[::1]:8443", "联邦.example:443"])
def test_a_token_survives_its_text(address: str):
    token = a_token(address)
    text = token.encode()
    assert text.startswith("hansa1-")
    assert text.isascii()
    assert Token.decode(text) == token


def test_a_token_survives_the_line_breaks_of_a_mail():
    token = a_token()
    text = token.encode()
    assert Token.decode(f"  {text[:40]}\r\n {text[40:]}\n") == token


def test_two_tokens_never_share_a_secret():
    key = point(new_key().public_key())
    one, other = (Token.new("a:1", authority_key=key, lobby_seed=SEED) for _ in range(2))
    assert one.secret != other.secret
    assert len(one.secret) == 16


def test_a_token_does_not_show_its_secret_when_printed():
    token = a_token()
    assert token.secret.hex() not in repr(token)
    assert repr(token.secret) not in repr(token)


def test_only_the_hash_of_a_secret_need_be_stored():
    token = a_token()
    assert secret_hash(token.secret) == secret_hash(Token.decode(token.encode()).secret)
    assert secret_hash(token.secret) != secret_hash(bytes(16))
    assert token.secret not in secret_hash(token.secret)


@given(st.integers(min_value=0, max_value=110))
def test_a_truncated_token_is_named_as_such(length: int):
    text = ALWAYS_THE_SAME[: len(PREFIX) + length]
    with pytest.raises(TrustError, match="truncated or mistyped") as caught:
        Token.decode(text)
    assert "hansa party invite NAME" in caught.value.remedy


@given(st.data())
def test_a_mistyped_token_is_named_as_such(data: st.DataObject):
    text = ALWAYS_THE_SAME
    place = data.draw(st.integers(len(PREFIX), len(text) - 2))
    wrong = data.draw(st.sampled_from("abcXYZ019-_?.é").filter(lambda c: c != text[place]))
    with pytest.raises(TrustError, match="truncated or mistyped"):
        Token.decode(text[:place] + wrong + text[place + 1 :])


def test_what_is_no_token_is_told_from_one_of_another_version():
    with pytest.raises(TrustError, match="does not begin with 'hansa1-'"):
        Token.decode("eyJhbGciOi")
    with pytest.raises(TrustError, match="another version"):
        Token.decode("hansa2-abcdef")


def test_a_token_whose_address_is_none_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hansa.crypto.token.split_address", lambda address: ("", 0))
    text = a_token("nowhere").encode()
    monkeypatch.undo()
    with pytest.raises(TrustError, match="holds no address"):
        Token.decode(text)


def test_a_token_with_parts_of_the_wrong_length_cannot_be_made():
    with pytest.raises(TrustError, match="bytes is none"):
        Token("a:1", point(new_key().public_key()), SEED, b"short")


def test_a_token_cannot_pin_what_is_no_key():
    with pytest.raises(TrustError, match="pins a key that is none"):
        Token("a:1", b"\x02" + b"\xff" * 32, SEED, SEED)


@pytest.mark.parametrize(
    ("text", "host", "port"), [("a.b:1", "a.b", 1), ("[::1]:8443", "::1", 8443), ("10.0.0.1:65535", "10.0.0.1", 65535)]
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int):
    assert split_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "host", ":8443", "host:", "host:0", "host:65536", "host:x", "::1:8443", "[::1]", "a b:1",
     "https://host:8443", "host:٣", "host:8_4", "[host]:1", "[]:1", "u@host:1", "a\n:1"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_an_example(text: str):
    with pytest.raises(UsageError, match="is not an address") as caught:
        split_address(text)
    assert "fl.example.org:8443" in caught.value.remedy


def test_both_ends_derive_the_same_lobby_from_a_seed():
    one, other = pki.lobby_authority(SEED), pki.lobby_authority(SEED)
    assert one.public_key == other.public_key
    assert one.public_key != pki.lobby_authority(bytes(16)).public_key
