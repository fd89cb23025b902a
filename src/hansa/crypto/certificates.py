"""The shapes of Hansa's certificates: what stands in a root, and what in a leaf."""

import datetime as dt
import ipaddress
from contextlib import suppress
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hansa.crypto.keys import PrivateKey, PublicKey
from hansa.errors import UsageError

_BACKDATED = dt.timedelta(minutes=5)  # a party's clock may be a little slow


def now() -> dt.datetime:
    """The present, UTC."""
    return dt.datetime.now(dt.UTC)


def uri(role: str, name: str) -> x509.UniformResourceIdentifier:
    """The identity ``hansa://role/name``, percent-encoded: names may be of any script."""
    return x509.UniformResourceIdentifier(f"hansa://{role}/{quote(name, safe='')}")


def host_name(host: str) -> x509.GeneralName:
    """A host as it stands in a certificate: an IP address, or a DNS name in its ASCII form; raises UsageError: it can
    be neither."""
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        return x509.DNSName(host.encode("idna").decode())
    except UnicodeError:
        raise UsageError(f"{host!r} cannot be the name of a host") from None


def root(key: PublicKey, kind: str, lifetime: dt.timedelta) -> x509.CertificateBuilder:
    """A root for ``key``, whose subject follows from the key."""
    mark = x509.SubjectKeyIdentifier.from_public_key(key)
    subject = _subject(f"hansa {kind} {mark.digest.hex()}")
    return _certificate(subject, subject, key, lifetime, authority=True).add_extension(mark, critical=False)


def leaf(
    issuer: x509.Name,
    issuer_key: PrivateKey,
    key: PublicKey,
    *,
    label: str,
    names: list[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    lifetime: dt.timedelta,
) -> bytes:
    """A certificate for ``key``, signed by ``issuer_key``, as PEM."""
    mark = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    # The label holds a blank or is "lobby": it can never be read as the server's DNS name.
    made = _certificate(_subject(label), issuer, key, lifetime, authority=False)
    for extension in (x509.ExtendedKeyUsage([usage]), x509.SubjectAlternativeName(names), mark):
        made = made.add_extension(extension, critical=False)
    return made.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _subject(text: str) -> x509.Name:
    # X.520 allows a common name 64 characters, and the library counts bytes. Nothing reads this.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text.encode()[:64].decode(errors="ignore"))])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, lifetime: dt.timedelta, *, authority: bool
) -> x509.CertificateBuilder:
    present = now()
    usage = x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    basic = x509.BasicConstraints(ca=authority, path_length=0 if authority else None)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    made = made.serial_number(x509.random_serial_number())
    made = made.not_valid_before(present - _BACKDATED).not_valid_after(present + lifetime)
    return made.add_extension(basic, critical=True).add_extension(usage, critical=True)
