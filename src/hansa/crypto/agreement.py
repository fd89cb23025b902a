"""Keys that two parties agree on, what they seal with them, and identities that sign.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) bound to what both must see alike, AES-256-GCM for what one sends the
other through a coordinator, Ed25519 (RFC 8032) for who is who. Keys and digests have 32 bytes."""

import hashlib
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hansa.errors import TrustError

KEY, SIGNATURE, TAG = 32, 64, 16  # bytes; a sealed text is longer by a tag


def public(private: bytes) -> bytes:
    """The X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, peers: Iterable[bytes]) -> list[bytes]:
    """The secrets shared with holders of public keys; a TrustError if one is of small order, open to anybody."""
    own = X25519PrivateKey.from_private_bytes(private)
    try:
        return [own.exchange(X25519PublicKey.from_public_bytes(peer)) for peer in peers]
    except ValueError:
        raise TrustError("an X25519 public key is not one to agree with") from None


def derive(secret: bytes, bound: bytes, purpose: bytes) -> bytes:
    """A key for one purpose, from a secret and a digest of what it is bound to."""
    return HKDF(hashes.SHA256(), length=KEY, salt=bound, info=b"hansa " + purpose).derive(secret)


def digest(purpose: bytes, *parts: bytes) -> bytes:
    """SHA-256 of parts with their lengths, for a purpose: it binds to them, and hides a uniform key."""
    framed = [b"\0%d\0%b" % (len(part), part) for part in parts]
    return hashlib.sha256(b"hansa " + purpose + b"".join(framed)).digest()


def seal(key: bytes, place: int, text: bytes | memoryview, header: bytes) -> bytes:
    """A text that ``key`` opens, under a header that travels openly; never two texts for one place."""
    return AESGCM(key).encrypt(place.to_bytes(12, "big"), text, header)


def unseal(key: bytes, place: int, sealed: bytes | memoryview, header: bytes) -> bytes | None:
    """What :func:`seal` sealed; None if it was under another key or header, or was changed."""
    try:
        return AESGCM(key).decrypt(place.to_bytes(12, "big"), sealed, header)
    except InvalidTag:
        return None


class Identity:
    """An Ed25519 key, from its 32 private bytes: who a party is to those who pin ``public``."""

    def __init__(self, private: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    def sign(self, purpose: bytes, *parts: bytes) -> bytes:
        """A signature of 64 bytes under :func:`digest`."""
        return self._private.sign(digest(purpose, *parts))


def signed(identity: bytes, signature: bytes, purpose: bytes, *parts: bytes) -> bool:
    """Whether the holder of the public key ``identity`` signed these parts for this purpose."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, digest(purpose, *parts))
    except (InvalidSignature, ValueError):
        return False
    return True


def words(identity: bytes) -> str:
    """The fingerprint of a public key, eight words to read out over a telephone, 128 bits. Proquints (Wilkerson 2009,
    arXiv 0901.4016): consonant, vowel, consonant, vowel, consonant for 16 bits."""
    mark = digest(b"fingerprint", identity)
    said = [int.from_bytes(mark[i : i + 2], "big") for i in range(0, 16, 2)]
    c, v = "bdfghjklmnprstvz", "aiou"
    return " ".join(c[x >> 12] + v[x >> 10 & 3] + c[x >> 6 & 15] + v[x >> 4 & 3] + c[x & 15] for x in said)
