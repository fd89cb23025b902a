"""``hansa doctor`` finds what would stop a machine from taking part."""

import json
import socket
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hansa.cli import doctor
from hansa.cli.boundary import run
from hansa.cli.home import agent_home, coordinator_home, hansa_home

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def write_certificate(file: Path, first: datetime, last: datetime) -> None:
    """A self-signed certificate that holds from ``first`` to ``last``, and its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .sign(key, hashes.SHA256())
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    file.with_name("key.pem").write_text("not a certificate", "utf-8")


def test_a_machine_that_is_well_exits_0_and_says_what_was_looked_at(tmp_path, capsys):
    assert run(["doctor", "--home", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["well"] is True
    names = ["packages", "clock", "port", "home", "disk", "proxy"]
    assert [check["name"] for check in document["checks"]] == names


def test_a_port_in_use_exits_1_and_names_it(tmp_path, capsys):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["doctor", "--home", str(tmp_path), "--port", str(port)]) == 1
    assert f"bad  port: {port}: Address already in use" in capsys.readouterr().out


def test_a_port_that_cannot_be_one_is_bad():
    assert doctor.free_port(70000).verdict == "bad"


def test_a_missing_package_is_named(monkeypatch):
    def version(name):
        if name == "duckdb":
            raise metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    check = doctor.packages()
    assert (check.verdict, check.found) == ("bad", "missing: duckdb")


def test_a_clock_before_the_code_was_written_is_bad():
    assert doctor.clock(datetime(1970, 1, 2, tzinfo=UTC)).verdict == "bad"
    assert doctor.clock(NOW).verdict == "ok"


def test_a_home_that_cannot_be_written_is_bad(tmp_path):
    (tmp_path / "file").write_text("in the way", "utf-8")
    check = doctor.writable(tmp_path / "file" / "home")
    assert check.verdict == "bad"
    assert "HANSA_HOME" in check.remedy


@pytest.mark.parametrize(("free", "verdict"), [(1 << 20, "bad"), (1 << 30, "note"), (1 << 40, "ok")])
def test_little_disk_space_is_a_note_and_none_is_bad(tmp_path, monkeypatch, free, verdict):
    class Usage:
        pass

    Usage.free = free
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage)
    assert doctor.disk(tmp_path).verdict == verdict


def test_proxies_are_noted_without_their_passwords():
    check = doctor.proxies({"HTTPS_PROXY": "http://me:secret@proxy:3128", "no_proxy": "localhost"})
    assert check.verdict == "note"
    assert check.found == "https_proxy=http://proxy:3128, no_proxy=localhost"
    assert doctor.proxies({}).verdict == "ok"


@pytest.mark.parametrize(("first", "last", "verdict"), [(-1, 1, "ok"), (-2, -1, "bad"), (1, 2, "bad")])
def test_a_certificate_is_good_between_its_two_days(tmp_path, first, last, verdict):
    write_certificate(tmp_path / "agent" / "party.pem", NOW + timedelta(first), NOW + timedelta(last))
    (check,) = doctor.certificates(tmp_path, NOW)
    assert check.verdict == verdict
    assert check.name.endswith("party.pem")


def test_homes_follow_the_option_then_the_environment_then_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HANSA_HOME", str(tmp_path))
    assert agent_home() == tmp_path / "agent"
    assert coordinator_home() == tmp_path / "coordinator"
    assert agent_home(Path("here")) == Path.cwd() / "here"
    monkeypatch.delenv("HANSA_HOME")
    assert hansa_home() == Path.home() / ".hansa"
