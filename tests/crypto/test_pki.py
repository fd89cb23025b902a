import datetime as dt
import os
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hansa.crypto import pki
from hansa.crypto.keys import derived_key, key_from_pem, key_to_pem, new_key, point, public_key, request
from hansa.errors import StoreError, TrustError, UsageError
from hansa.files import write_whole

SEED = bytes(range(16))
NAMES = ["clinic-a", "北京协和医院", "Hôpital / Saint-Louis?", "医" * 100, "hansa-coordinator"]


@pytest.fixture(scope="module")
def authority() -> pki.Authority:
    return pki.Authority.create("汉萨")


def certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def forged(signer: pki.Authority, *, uris: list[str], serial: int = 7, days: int = 1) -> bytes:
    """A leaf with whatever names its maker likes."""
    now = dt.datetime.now(dt.UTC)
    names = [x509.UniformResourceIdentifier(uri) for uri in uris]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
        .issuer_name(signer.certificate.subject)
        .public_key(new_key().public_key())
        .serial_number(serial)
        .not_valid_before(now - dt.timedelta(days=30))
        .not_valid_after(now + dt.timedelta(days=days))
    )
    if uris:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ["party", "operator", "coordinator"])
def test_a_certificate_gives_back_the_role_and_name_it_was_issued_for(authority, role, name):
    pem = authority.issue(request(new_key()), role=role, name=name)
    found = pki.identify(pem, authority.public_key)
    assert (found.role, found.name) == (role, name)
    assert found.serial == f"{certificate(pem).serial_number:x}"
    left = found.expires - dt.datetime.now(dt.UTC)
    assert dt.timedelta(hours=47) < left <= dt.timedelta(hours=48)


def test_names_that_look_the_same_are_the_same():
    assert pki.canonical_name(" Cafe\u0301 ") == "Caf\u00e9"


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 101, "\ud800", "a\u200eb"])
def test_a_name_that_cannot_be_printed_is_refused(authority, name):
    with pytest.raises(UsageError, match="cannot be a name"):
        authority.issue(request(new_key()), role="party", name=name)


def test_a_role_is_one_of_three(authority):
    with pytest.raises(UsageError, match="'lobby'"):
        authority.issue(request(new_key()), role="lobby", name="a")


def test_serial_numbers_are_random_and_certificates_backdated(authority):
    pems = [authority.issue(request(new_key()), role="party", name="a") for _ in range(2)]
    one, other = map(certificate, pems)
    assert one.serial_number != other.serial_number
    assert one.not_valid_before_utc < dt.datetime.now(dt.UTC) - dt.timedelta(minutes=4)


def test_nothing_of_a_request_but_its_key_is_believed(authority):
    key = new_key()
    names = [x509.UniformResourceIdentifier("hansa://operator/root")]
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = authority.issue(csr.public_bytes(serialization.Encoding.PEM), role="party", name="clinic")
    found = pki.identify(pem, authority.public_key)
    assert (found.role, found.name) == ("party", "clinic")
    leaf = certificate(pem)
    assert leaf.public_key() == key.public_key()
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert "root" not in str(leaf.subject)


def test_a_request_that_its_key_did_not_sign_is_refused(authority):
    der = x509.load_pem_x509_csr(request(new_key())).public_bytes(serialization.Encoding.DER)
    broken = x509.load_der_x509_csr(der[:-1] + bytes([der[-1] ^ 1]))
    with pytest.raises(TrustError, match="not signed by its own key"):
        authority.issue(broken.public_bytes(serialization.Encoding.PEM), role="party", name="a")


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(),
                                 ec.generate_private_key(ec.SECP384R1())])  # fmt: skip
def test_a_request_for_another_kind_of_key_is_refused(authority, key):
    hash_ = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hash_)
    with pytest.raises(TrustError, match="another kind of key"):
        authority.issue(csr.public_bytes(serialization.Encoding.PEM), role="party", name="a")


def test_a_request_that_is_none_is_refused(authority):
    with pytest.raises(TrustError, match="cannot be read"):
        authority.issue(b"hello", role="party", name="a")


def test_a_party_is_named_by_the_authority_and_never_by_the_lobby(authority):
    lobby = pki.lobby_authority(SEED)
    pem = forged(lobby, uris=["hansa://party/clinic-a"])
    with pytest.raises(TrustError, match="not signed by this coordinator's authority"):
        pki.identify(pem, authority.public_key)
    with pytest.raises(TrustError, match="claims a name"):
        pki.identify(pem, authority.public_key, lobby.public_key)


def test_another_authority_names_nobody_here(authority):
    other = pki.Authority.create("other")
    pem = other.issue(request(new_key()), role="party", name="a")
    with pytest.raises(TrustError, match="not signed by this") as caught:
        pki.identify(pem, authority.public_key, pki.lobby_authority(SEED).public_key)
    assert "hansa party invite" in caught.value.remedy


def test_a_certificate_of_an_unknown_signature_algorithm_is_refused(authority):
    key = ed25519.Ed25519PrivateKey.generate()
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - dt.timedelta(1), now + dt.timedelta(1)).sign(
        key, None
    )
    with pytest.raises(TrustError, match="not signed by this"):
        pki.identify(made.public_bytes(serialization.Encoding.PEM), authority.public_key)


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n", b"\xff" * 100])
def test_a_certificate_that_is_none_is_refused(authority, pem):
    with pytest.raises(TrustError, match="cannot be read"):
        pki.identify(pem, authority.public_key)
    with pytest.raises(TrustError, match="cannot be read"):
        pki.pinned_authority(pem, point(authority.public_key))


def test_a_certificate_counts_only_within_its_validity(authority):
    pem = authority.issue(request(new_key()), role="party", name="a")
    now = dt.datetime.now(dt.UTC)
    with pytest.raises(TrustError, match="expired on") as caught:
        pki.identify(pem, authority.public_key, now=now + dt.timedelta(hours=49))
    assert "new token" in caught.value.remedy
    with pytest.raises(TrustError, match="not valid before") as caught:
        pki.identify(pem, authority.public_key, now=now - dt.timedelta(hours=1))
    assert "clock" in caught.value.remedy
    with pytest.raises(TrustError, match="expired on"):
        pki.require_valid(pem, now=now + dt.timedelta(hours=49))
    pki.require_valid(pem)


@pytest.mark.parametrize(
    "uris",
    [[], ["hansa://lobby/"], ["hansa://party/"], ["hansa://king/a"], ["https://party/a"],
     ["hansa://party/a/b"], ["hansa://party/a", "hansa://operator/a"], ["xhansa://party/a"]],
)  # fmt: skip
def test_a_certificate_without_exactly_one_role_and_name_is_refused(authority, uris):
    with pytest.raises(TrustError, match="no role and name"):
        pki.identify(forged(authority, uris=uris), authority.public_key)


def test_the_lobby_lets_its_holder_knock_and_no_more(authority):
    key = new_key()
    pem = pki.lobby_leaf(SEED, key)
    lobby = pki.lobby_authority(SEED).public_key
    found = pki.identify(pem, authority.public_key, lobby)
    assert (found.role, found.name) == ("lobby", "")
    assert found.expires < dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    with pytest.raises(TrustError):
        pki.identify(pem, authority.public_key)
    named = authority.issue(request(key), role="party", name="a")
    assert pki.identify(named, authority.public_key, lobby).name == "a"


def test_only_the_coordinator_may_serve(authority):
    _, served = authority.server_certificate("汉萨")
    dialled = authority.issue(request(new_key()), role="party", name=pki.SERVER_NAME)

    def facts(pem: bytes) -> tuple[list[str], list[x509.ObjectIdentifier], str]:
        held = certificate(pem).extensions
        names = held.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = held.get_extension_for_class(x509.ExtendedKeyUsage).value
        common = certificate(pem).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return names.get_values_for_type(x509.DNSName), list(usages), str(common)

    assert facts(served)[:2] == ([pki.SERVER_NAME], [ExtendedKeyUsageOID.SERVER_AUTH])
    names, usages, common = facts(dialled)
    assert names == []
    assert usages == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert common != pki.SERVER_NAME


@pytest.mark.parametrize(
    ("host", "dns", "addresses"),
    [
        ("fl.example.org", ["fl.example.org"], []),
        ("联邦.example", ["xn--8y0a574a.example"], []),
        ("10.0.0.7", [], ["10.0.0.7"]),
        ("::1", [], ["::1"]),
    ],
)
def test_the_host_of_the_coordinator_enters_its_certificate(authority, host, dns, addresses):
    _, pem = authority.server_certificate("x", host=host)
    names = certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [pki.SERVER_NAME, *dns]
    assert [str(found) for found in names.get_values_for_type(x509.IPAddress)] == addresses
    assert pki.identify(pem, authority.public_key).role == "coordinator"


def test_a_host_that_cannot_be_one_is_refused(authority):
    with pytest.raises(UsageError, match="cannot be the name of a host"):
        authority.server_certificate("x", host="a..b")


def test_a_trust_anchor_has_the_authority_s_subject_and_key_and_a_signature_that_proves_nothing(authority):
    anchor = certificate(pki.trust_anchor(public_key(point(authority.public_key))))
    assert anchor.subject == authority.certificate.subject
    assert anchor.public_key() == authority.public_key
    with pytest.raises(TrustError):
        pki.identify(anchor.public_bytes(serialization.Encoding.PEM), authority.public_key)


def test_a_token_s_pin_tells_one_authority_from_another(authority):
    pem = authority.certificate_pem
    assert pki.pinned_authority(pem, point(authority.public_key)) == authority.public_key
    with pytest.raises(TrustError, match="not the one that the token pins"):
        pki.pinned_authority(pem, point(new_key().public_key()))


def test_renewal_is_due_after_two_thirds_of_a_certificate_s_life(authority):
    pem = authority.issue(request(new_key()), role="party", name="a")
    now = dt.datetime.now(dt.UTC)
    assert not pki.renewal_due(pem)
    assert not pki.renewal_due(pem, now=now + dt.timedelta(hours=31))
    assert pki.renewal_due(pem, now=now + dt.timedelta(hours=33))


def test_an_authority_survives_its_folder(authority, tmp_path):
    authority.save(tmp_path / "ca")
    loaded = pki.Authority.load(tmp_path / "ca")
    assert loaded.certificate == authority.certificate
    pem = loaded.issue(request(new_key()), role="party", name="a")
    assert pki.identify(pem, authority.public_key).name == "a"
    assert sorted(path.name for path in (tmp_path / "ca").iterdir()) == ["authority.key", "authority.pem"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no owner-only mode")
def test_only_its_owner_can_read_a_private_key(authority, tmp_path):
    old = os.umask(0)
    try:
        authority.save(tmp_path)
    finally:
        os.umask(old)
    assert (tmp_path / "authority.key").stat().st_mode & 0o777 == 0o600


def test_a_damaged_authority_says_which_file(authority, tmp_path):
    with pytest.raises(StoreError, match=r"authority\.key is missing.*hansa coordinator restore"):
        pki.Authority.load(tmp_path)
    authority.save(tmp_path)
    (tmp_path / "authority.pem").write_bytes(b"junk")
    with pytest.raises(StoreError, match=r"authority\.pem is damaged.*hansa coordinator restore"):
        pki.Authority.load(tmp_path)
    (tmp_path / "authority.pem").write_bytes(pki.Authority.create("b").certificate_pem)
    with pytest.raises(StoreError, match=r"do not belong together.*hansa coordinator restore"):
        pki.Authority.load(tmp_path)
    (tmp_path / "authority.key").write_bytes(b"junk")
    with pytest.raises(StoreError, match=rf"{tmp_path}/authority\.key is damaged.*hansa coordinator restore"):
        pki.Authority.load(tmp_path)


def test_a_private_file_that_cannot_be_put_in_place_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_whole(tmp_path / "taken", b"secret", private=True)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_key_survives_its_pem_and_another_kind_is_refused():
    key = new_key()
    assert key_from_pem(key_to_pem(key)).public_key() == key.public_key()
    assert public_key(point(key.public_key())) == key.public_key()
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(StoreError, match="no P-256 key"):
        key_from_pem(other)
    with pytest.raises(TrustError, match="no P-256 public key"):
        public_key(bytes(33))


def test_derived_keys_differ_by_seed_and_purpose():
    keys = [derived_key(seed, purpose=purpose) for seed in (SEED, bytes(16)) for purpose in "ab"]
    assert len({point(key.public_key()) for key in keys}) == 4


def test_the_lobbys_root_lasts_as_long_as_a_server_runs(authority):
    lobby, own = pki.lobby_authority(SEED).certificate, authority.certificate
    assert abs(lobby.not_valid_after_utc - own.not_valid_after_utc) < dt.timedelta(days=1)
