"""P-256 keys: made where they are used, kept in files that only their owner reads.

P-256 and not Ed25519, because gRPC's BoringSSL does not accept Ed25519 certificates by default."""

from contextlib import suppress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from hansa.errors import StoreError, TrustError

# A new authority would know no party.
RESTORE = "Restore its folder from a backup: `hansa coordinator restore` or `hansa agent restore`"

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey

# Order of P-256 (FIPS 186-5, SP 800-186 section 3.2.1.3).
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def new_key() -> PrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def derived_key(seed: bytes, *, purpose: str) -> PrivateKey:
    """The P-256 key that ``seed`` and ``purpose`` determine. HKDF-SHA256 to 48 bytes, reduced to [1, n-1]: extra random
    bits, FIPS 186-5 appendix A.2.1, so the bias is below 2^-128."""
    wide = HKDF(hashes.SHA256(), length=48, salt=None, info=purpose.encode()).derive(seed)
    return ec.derive_private_key(int.from_bytes(wide, "big") % (_ORDER - 1) + 1, ec.SECP256R1())


def key_to_pem(key: PrivateKey) -> bytes:
    """The private key as unencrypted PKCS #8; keep it where only its owner reads."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def key_from_pem(pem: bytes, file: str = "a private key") -> PrivateKey:
    """The P-256 private key in ``pem``, which was read from ``file``; raises StoreError: there is none."""
    with suppress(ValueError, TypeError):
        key = serialization.load_pem_private_key(pem, password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1":
            return key
    raise StoreError(f"{file} is damaged: it holds no P-256 key", remedy=RESTORE)


def split_pem(pem: bytes) -> tuple[bytes, bytes]:
    """A file that holds a private key and then its certificate, as key and certificate; raises ValueError: there is no
    certificate in it."""
    begin = pem.index(b"-----BEGIN CERTIFICATE")
    return pem[:begin], pem[begin:]


def point(key: PublicKey) -> bytes:
    """The public key as a compressed point, 33 bytes."""
    encoding, form = serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    return key.public_bytes(encoding, form)


def public_key(compressed: bytes) -> PublicKey:
    """The public key at a compressed point; raises TrustError: it is no point of P-256."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), compressed)
    except ValueError:
        raise TrustError("this is no P-256 public key") from None


def request(key: PrivateKey) -> bytes:
    """A certificate signing request in PEM: it proves that its sender holds ``key``, no more."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hansa")])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


def requested_key(csr_pem: bytes) -> PublicKey:
    """The public key of a signing request, its signature checked; the rest of it is not believed; raises TrustError: it
    is no request, is not signed by its own key, or the key is not P-256."""
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        key, signed = csr.public_key(), csr.is_signature_valid
    except Exception:  # whatever a parser makes of a stranger's bytes
        raise TrustError("the certificate request cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise TrustError("the certificate request is for another kind of key than P-256")
    if not signed:
        raise TrustError("the certificate request is not signed by its own key")
    return key
