"""Who is who: one certificate authority for each coordinator, and a lobby in front of it.

One port, and every connection mutually authenticated, even the one that joins. The server trusts
two roots. The **authority** (CA) signs the coordinator, the parties and the operators; its private
key never leaves the coordinator. The **lobby**'s private key is derived from a seed that every join
token carries, so a token's holder can make itself the client certificate that the handshake asks
for. Such a peer has proved nothing but that it once saw a token, and may only call Join.

Because any holder of a token can forge any name under the lobby, TLS alone says nothing about who a
peer is: :func:`identify` does. It believes a name only under the authority's own signature."""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from hansa.crypto import certificates, keys
from hansa.crypto.keys import PrivateKey, PublicKey
from hansa.crypto.vault import Vault
from hansa.errors import StoreError, TrustError, UsageError
from hansa.files import write_whole

SERVER_NAME = "hansa-coordinator"
"""The DNS name in the coordinator's certificate; clients expect it whatever address they dial."""

COORDINATOR, OPERATOR, PARTY, LOBBY = "coordinator", "operator", "party", "lobby"
ROLES = frozenset({COORDINATOR, OPERATOR, PARTY})

LIFETIME = dt.timedelta(hours=48)
_AUTHORITY_LIFETIME = dt.timedelta(days=3653)
_LOBBY_LIFETIME = dt.timedelta(minutes=30)
_LONGEST_NAME = 100


def canonical_name(name: str) -> str:
    """``name`` as it stands in certificates: NFC, without blanks around it. Two spellings of one name that look the
    same (macOS decomposes accents) must not become two identities. Raises UsageError: it is empty, longer than 100
    characters, or holds what cannot be printed."""
    text = unicodedata.normalize("NFC", name).strip()
    if not text or len(text) > _LONGEST_NAME or not text.isprintable():
        what = f"{name!r} cannot be a name"
        raise UsageError(what, remedy=f"Use 1 to {_LONGEST_NAME} printable characters of any script.")
    return text


@dataclass(frozen=True)
class Identity:
    """What a certificate proves about its holder."""

    role: str  # ``party``, ``operator``, ``coordinator``; ``lobby`` for a token's holder
    name: str  # as the operator invited it; empty in the lobby
    serial: str  # of the certificate, hexadecimal
    expires: dt.datetime  # end of its validity, UTC


@dataclass(frozen=True)
class Authority:
    """A key and the self-signed certificate that stands for it.

    The certificate's subject follows from the public key alone, which is what lets :func:`trust_anchor` rebuild it from
    the 33 bytes in a token."""

    key: PrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, name: str) -> Authority:
        """A new authority, for ten years; ``name`` is in its certificate for people to read."""
        key = keys.new_key()
        said = x509.SubjectAlternativeName([certificates.uri("authority", canonical_name(name))])
        root = certificates.root(key.public_key(), "authority", _AUTHORITY_LIFETIME)
        return cls(key, root.add_extension(said, critical=False).sign(key, hashes.SHA256()))

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def public_key(self) -> PublicKey:
        """The public key that tokens pin."""
        return self.key.public_key()

    def save(self, folder: Path) -> None:
        """Write ``authority.pem``, then ``authority.key`` (owner only), each whole or not at all."""
        write_whole(folder / "authority.pem", self.certificate_pem, private=True)
        Vault.of(folder).write(folder / "authority.key", keys.key_to_pem(self.key))

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read what :meth:`save` wrote; raises StoreError: a file is missing or damaged, or the two do not belong
        together."""
        try:
            sealed = Vault.of(folder).read(file := folder / "authority.key")
            key, certificate = keys.key_from_pem(sealed, str(file)), read_authority(folder)
        except FileNotFoundError as missing:
            raise StoreError(f"{missing.filename} is missing", remedy=keys.RESTORE) from None
        if certificate.public_key() != key.public_key():
            raise StoreError(f"{folder}: authority.key and authority.pem do not belong together", remedy=keys.RESTORE)
        return cls(key, certificate)

    def issue(
        self, csr_pem: bytes, *, role: str, name: str, lifetime: dt.timedelta = LIFETIME, host: str = ""
    ) -> bytes:
        """A certificate for the key of a signing request, as PEM.

        Of the request only the public key is used: role and name are the caller's, never the
        requester's. Backdated by 5 minutes, with a random serial number. ``host`` is for the
        coordinator only: the name or address under which it is reached.

        Raises TrustError: the request is damaged or not signed by its own key; UsageError: the name cannot be one."""
        if role not in ROLES:
            raise UsageError(f"a certificate cannot be for the role {role!r}")
        names: list[x509.GeneralName] = [certificates.uri(role, canonical_name(name))]
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        if role == COORDINATOR:
            names.append(x509.DNSName(SERVER_NAME))
            names += [certificates.host_name(host)] if host else []
            usage = ExtendedKeyUsageOID.SERVER_AUTH
        return certificates.leaf(
            self.certificate.subject, self.key, keys.requested_key(csr_pem),
            label=f"{role} {canonical_name(name)}", names=names, usage=usage, lifetime=lifetime,
        )  # fmt: skip

    def server_certificate(
        self, name: str, *, host: str = "", lifetime: dt.timedelta = LIFETIME
    ) -> tuple[bytes, bytes]:
        """A fresh key and certificate for the coordinator itself, both PEM. ``host`` is the name or address under which
        it is reached; it stands in the certificate beside the name that Hansa's own clients expect."""
        key = keys.new_key()
        leaf = self.issue(keys.request(key), role=COORDINATOR, name=name, host=host, lifetime=lifetime)
        return keys.key_to_pem(key), leaf


def read_authority(folder: Path) -> x509.Certificate:
    """The certificate in a folder's ``authority.pem``; raises StoreError: it is damaged."""
    try:
        return x509.load_pem_x509_certificate((file := folder / "authority.pem").read_bytes())
    except ValueError:
        raise StoreError(f"{file} is damaged", remedy=keys.RESTORE) from None


def lobby_authority(seed: bytes) -> Authority:
    """The lobby that a token's 16-byte seed determines: the same key at both ends. A server keeps its root as long as
    it runs, and TLS checks a root's dates: it lives as long as the authority's. What lasts half an hour is a leaf."""
    key = keys.derived_key(seed, purpose="hansa lobby")
    root = certificates.root(key.public_key(), "lobby", _AUTHORITY_LIFETIME)
    return Authority(key, root.sign(key, hashes.SHA256()))


def lobby_leaf(seed: bytes, key: PrivateKey) -> bytes:
    """The certificate with which a token's holder knocks, valid for half an hour, as PEM."""
    lobby = lobby_authority(seed)
    return certificates.leaf(
        lobby.certificate.subject, lobby.key, key.public_key(),
        label=LOBBY, names=[certificates.uri(LOBBY, "")],
        usage=ExtendedKeyUsageOID.CLIENT_AUTH, lifetime=_LOBBY_LIFETIME,
    )  # fmt: skip


def trust_anchor(key: PublicKey) -> bytes:
    """A root certificate for TLS that pins ``key``, as PEM, made without the authority's help.

    Subject and public key are the authority's; the signature is by a throw-away key, and does not verify. That is safe,
    because nothing is proved by it: a trust anchor is trusted for being in the list, and TLS libraries do not check its
    self-signature (RFC 5280 section 6.1: the anchor is an input to path validation, and no part of the path). What must
    verify, under the pinned key, is the signature on the server's certificate, and only the authority can make that
    one. Python's own ``ssl`` and gRPC's BoringSSL both behave so; a test holds them to it."""
    root = certificates.root(key, "authority", _AUTHORITY_LIFETIME)
    return root.sign(keys.new_key(), hashes.SHA256()).public_bytes(Encoding.PEM)


def pinned_authority(certificate_pem: bytes, pinned: bytes) -> PublicKey:
    """The public key in an authority's certificate, if it is the one that a token pinned; raises TrustError: it cannot
    be read, or holds another key."""
    try:
        key = x509.load_pem_x509_certificate(certificate_pem).public_key()
    except ValueError:
        raise TrustError("the authority's certificate cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or keys.point(key) != pinned:
        raise TrustError("the coordinator's authority is not the one that the token pins")
    return key


def identify(
    certificate_pem: bytes,
    authority_key: PublicKey,
    lobby_key: PublicKey | None = None,
    *,
    now: dt.datetime | None = None,
) -> Identity:
    """The identity in a certificate that the authority signed itself; the role ``lobby``, without a name,
    where the lobby did, if its key is given.

    Not a chain, and not whatever TLS trusted: one signature, by this key. About 0.1 ms.

    Raises TrustError: it cannot be read, somebody else signed it, it is outside its validity, it names no role and
    name, or the lobby signed it in somebody's name."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        urls = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        urls = []
    except Exception:  # whatever a parser makes of a stranger's bytes
        raise TrustError("the certificate cannot be read") from None
    role, name = LOBBY, ""
    # The authority first: nearly every call is a member's, and verifying costs most of the time.
    if _signed_by(certificate, authority_key):
        found = re.fullmatch(r"hansa://(\w+)/([^/]+)", urls[0]) if len(urls) == 1 else None
        if found is None or found[1] not in ROLES:
            raise TrustError("the certificate names no role and name of Hansa's")
        role, name = found[1], unquote(found[2])
    elif lobby_key is None or not _signed_by(certificate, lobby_key):
        remedy = "Join again with a new token of this coordinator: hansa party invite NAME"
        raise TrustError("the certificate was not signed by this coordinator's authority", remedy=remedy)
    elif urls != ["hansa://lobby/"]:
        raise TrustError("a lobby certificate claims a name; only the authority gives names")
    _check_validity(certificate, now or certificates.now())
    return Identity(role, name, f"{certificate.serial_number:x}", certificate.not_valid_after_utc)


def require_valid(certificate_pem: bytes, *, now: dt.datetime | None = None) -> None:
    """Raise TrustError if a certificate of one's own is outside its validity."""
    _check_validity(x509.load_pem_x509_certificate(certificate_pem), now or certificates.now())


def renewal_due(certificate_pem: bytes, *, now: dt.datetime | None = None) -> bool:
    """Whether two thirds of the certificate's validity have passed."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (now or certificates.now()) >= start + (end - start) * 2 / 3


def _signed_by(certificate: x509.Certificate, key: PublicKey) -> bool:
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        return False
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _check_validity(certificate: x509.Certificate, moment: dt.datetime) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    says = f"{moment:%Y-%m-%d %H:%M} UTC"
    if moment < start:
        remedy = f"Set this machine's clock, which says {says}: timedatectl set-ntp true"
        raise TrustError(f"the certificate is not valid before {start:%Y-%m-%d %H:%M} UTC", remedy=remedy)
    if moment > end:
        remedy = f"If it is {says}, join again with a new token; otherwise set this machine's clock"
        raise TrustError(f"the certificate expired on {end:%Y-%m-%d %H:%M} UTC", remedy=remedy)
