"""Join tokens: one short line that lets one party join one coordinator, once.

    hansa1-<base64url of: authority key 33 | lobby seed 16 | secret 16 | address | checksum 4>

A token pins the coordinator's CA by its public key, so the party knows whom it joins before it says anything; the lobby
seed lets it make the client certificate that the server demands; the secret is spent by joining. Whoever reads a token
before its party uses it can join in its place: send it as you would send a password."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from hansa.errors import TrustError, UsageError

PREFIX = "hansa1-"
_KEY, _SEED, _SECRET, _CHECK = 33, 16, 16, 4
_FIXED = _KEY + _SEED + _SECRET
_REMEDY = "Ask the coordinator's operator for a new token: hansa party invite NAME"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[::1]:port``; the host comes without brackets; raises UsageError: there is no
    port in it, or more than one address."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    plain = bare.isprintable() and not any(c in " []/@" for c in bare)
    # int() would also take "٣" and "8_443".
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    if not colon or not bare or not plain or (":" in bare) != bracketed or not 0 < number < 65536:
        remedy = "Write HOST:PORT, for example fl.example.org:8443 or [::1]:8443."
        raise UsageError(f"{address!r} is not an address", remedy=remedy)
    return bare, number


def secret_hash(secret: bytes) -> bytes:
    """What the coordinator stores of a secret: SHA-256; 128 random bits need no slow hash."""
    return hashlib.sha256(b"hansa join secret\x00" + secret).digest()


@dataclass(frozen=True)
class Token:
    """One invitation.

    Attributes:
        address: ``host:port`` at which the coordinator is reached.
        authority_key: its CA's public key, a compressed P-256 point of 33 bytes.
        lobby_seed: 16 bytes from which the lobby's key is derived.
        secret: 16 random bytes, accepted once.

    Raises TrustError: a part has the wrong length, or the key is no point of P-256; UsageError: the address is not one.
    """

    address: str
    authority_key: bytes = field(repr=False)
    lobby_seed: bytes = field(repr=False)
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        split_address(self.address)
        lengths = len(self.authority_key), len(self.lobby_seed), len(self.secret)
        if lengths != (_KEY, _SEED, _SECRET):
            raise TrustError(f"a token with parts of {lengths} bytes is none", remedy=_REMEDY)
        try:
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), self.authority_key)
        except ValueError:
            raise TrustError("the token pins a key that is none", remedy=_REMEDY) from None

    @classmethod
    def new(cls, address: str, *, authority_key: bytes, lobby_seed: bytes) -> Token:
        """A token with a fresh secret."""
        return cls(address, authority_key, lobby_seed, secrets.token_bytes(_SECRET))

    def encode(self) -> str:
        """The token as text."""
        body = self.authority_key + self.lobby_seed + self.secret + self.address.encode()
        return PREFIX + base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Token:
        """The token that ``text`` spells; spaces and line breaks of a mail are forgiven; raises TrustError: it is no
        token, or one that was truncated or mistyped."""
        packed = "".join(text.split())
        if not packed.startswith(PREFIX):
            newer = packed.startswith("hansa") and packed[5:6].isdigit()
            what = "is of another version of Hansa" if newer else f"does not begin with {PREFIX!r}"
            raise TrustError(f"the token {what}", remedy=_REMEDY)
        packed = packed.removeprefix(PREFIX)
        try:
            # validate: the plain decoder skips what is not base64, and would hide a typing error.
            raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        body, check = raw[:-_CHECK], raw[-_CHECK:]
        if len(body) <= _FIXED or not secrets.compare_digest(check, _check(body)):
            raise TrustError("the token is truncated or mistyped", remedy=_REMEDY)
        key, seed, secret = body[:_KEY], body[_KEY : _KEY + _SEED], body[_KEY + _SEED : _FIXED]
        try:
            return cls(body[_FIXED:].decode(), key, seed, secret)
        except (UnicodeDecodeError, UsageError):
            raise TrustError("the token holds no address", remedy=_REMEDY) from None


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"hansa token\x00" + body).digest()[:_CHECK]
