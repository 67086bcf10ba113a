"""Certificates: a chain that verifies, names that are refused, keys that only their owner can read."""

from __future__ import annotations

import datetime
import re
import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from echelon.errors import ConfigError
from echelon.provision.pki import Authority, request, write_private


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("boundary a")


def leaf(pem: bytes) -> x509.Certificate:
    found = x509.load_pem_x509_certificates(pem)
    assert len(found) == 1
    return found[0]


def verify_client(authority: Authority, certificate: x509.Certificate) -> None:
    PolicyBuilder().store(Store([authority.certificate])).build_client_verifier().verify(certificate, [])


def verify_server(authority: Authority, certificate: x509.Certificate, host: str) -> None:
    builder = PolicyBuilder().store(Store([authority.certificate]))
    builder.build_server_verifier(x509.DNSName(host)).verify(certificate, [])


def test_one_pem_holds_the_key_and_then_its_chain(authority):
    pem = authority.issue("a-0")
    assert re.findall(rb"-----BEGIN ([A-Z ]+)-----", pem) == [b"PRIVATE KEY", b"CERTIFICATE"]
    key = load_pem_private_key(pem, None)
    assert isinstance(key, EllipticCurvePrivateKey)
    assert isinstance(key.curve, SECP256R1)
    certificate = leaf(pem)
    assert certificate.public_key() == key.public_key()
    assert [part.value for part in certificate.subject] == ["a-0"]
    assert [part.oid for part in certificate.subject] == [NameOID.COMMON_NAME]
    certificate.verify_directly_issued_by(authority.certificate)


def test_a_chain_verifies_under_its_own_authority_and_no_other(authority):
    other = Authority.create("boundary a")  # the same name makes it no better
    broker = leaf(authority.issue("broker", ["localhost", "127.0.0.1", "boundary-a"]))
    verify_server(authority, broker, "localhost")
    verify_server(authority, broker, "boundary-a")
    for stranger, host in ((authority, "exchange"), (other, "localhost")):
        with pytest.raises(VerificationError):
            verify_server(stranger, broker, host)
    names = broker.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "boundary-a"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_a_certificate_without_hosts_cannot_stand_for_a_broker(authority):
    uses = leaf(authority.issue("a-0")).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(VerificationError):
        verify_server(authority, leaf(authority.issue("a-0")), "localhost")


def test_what_is_issued_issues_nothing(authority):
    constraints = leaf(authority.issue("a-0")).extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    own = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (own.ca, own.path_length) == (True, 0)


def test_python_itself_shakes_hands_with_it_and_refuses_another(authority, tmp_path):
    (tmp_path / "broker.pem").write_bytes(authority.issue("broker", ["localhost"]))
    (tmp_path / "a-0.pem").write_bytes(authority.issue("a-0"))
    (tmp_path / "b-0.pem").write_bytes(Authority.create("boundary b").issue("b-0"))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=authority.pem.decode())
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(tmp_path / "broker.pem")
    outcomes = []
    for name in ("a-0", "b-0"):
        client = ssl.create_default_context(cadata=authority.pem.decode())
        client.load_cert_chain(tmp_path / f"{name}.pem")
        ours, theirs = socket.socketpair()

        def serve(end=theirs) -> None:
            try:
                with server.wrap_socket(end, server_side=True) as secure:
                    peer = dict(part[0] for part in secure.getpeercert()["subject"])
                    outcomes.append(peer["commonName"])
                    secure.sendall(b"welcome")
            except ssl.SSLError as error:
                outcomes.append(error.reason)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with client.wrap_socket(ours, server_hostname="localhost") as secure:
                secure.recv(16)
        except (ssl.SSLError, ConnectionError):
            assert name == "b-0"
        thread.join(10)
    assert outcomes[0] == "a-0"
    assert "VERIFY" in outcomes[1]


@pytest.mark.parametrize(
    "name",
    ["", "a" * 65, "a,O=x", "a b", "-a", "a-", "a/b", "a\n", "CN=operator", "a+CN=operator", "a\\", "ä", "*"],
)
def test_a_common_name_is_only_a_name(authority, name):
    with pytest.raises(ConfigError, match="common name"):
        authority.issue(name)


@pytest.mark.parametrize("host", ["", "a b", "*", "a/b", "ä.example", "a,b", "x\n"])
def test_a_host_is_only_a_host(authority, host):
    with pytest.raises(ConfigError, match="host"):
        authority.issue("broker", ["localhost", host])


def test_time_is_limited(authority):
    certificate = leaf(authority.issue("a-0", days=30))
    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_before_utc < now
    assert datetime.timedelta(days=29) < certificate.not_valid_after_utc - now <= datetime.timedelta(days=30)
    longest = leaf(authority.issue("a-0", days=36_500))
    assert longest.not_valid_after_utc == authority.certificate.not_valid_after_utc
    with pytest.raises(ConfigError, match="at least 1"):
        authority.issue("a-0", days=0)
    with pytest.raises(ConfigError, match="name"):
        Authority.create("")


def test_saved_and_loaded_it_is_the_same_and_its_key_is_its_owners(authority, tmp_path):
    certificate, key = tmp_path / "x" / "ca.pem", tmp_path / "x" / "ca-key.pem"
    authority.save(certificate, key)
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in certificate.read_bytes()
    loaded = Authority.load(certificate, key)
    assert loaded.pem == authority.pem
    verify_client(loaded, leaf(authority.issue("a-0", ["client.example"])))
    leaf(loaded.issue("a-0")).verify_directly_issued_by(authority.certificate)
    before = key.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        Authority.create("another").save(certificate, key)
    assert key.read_bytes() == before


def test_a_private_file_is_private_from_its_first_byte(tmp_path):
    write_private(tmp_path / "deep" / "tls.pem", b"key")
    assert (tmp_path / "deep" / "tls.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="exists already"):
        write_private(tmp_path / "deep" / "tls.pem", b"another")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_private(tmp_path / "deep" / "tls.pem" / "below", b"key")


def test_files_that_do_not_belong_together_are_refused(authority, tmp_path):
    authority.save(tmp_path / "ca.pem", tmp_path / "ca-key.pem")
    Authority.create("b").save(tmp_path / "b.pem", tmp_path / "b-key.pem")
    (tmp_path / "leaf.pem").write_bytes(authority.issue("a-0"))
    (tmp_path / "large.pem").write_bytes(b"x" * 70_000)
    for certificate, key, word in (
        ("ca.pem", "b-key.pem", "not the key of"),
        ("leaf.pem", "leaf.pem", "not a certificate authority"),
        ("ca.pem", "ca.pem", "private key"),
        ("ca-key.pem", "ca-key.pem", "not a certificate"),
        ("none.pem", "ca-key.pem", "cannot be read"),
        ("large.pem", "ca-key.pem", "larger"),
    ):
        with pytest.raises(ConfigError, match=word):
            Authority.load(tmp_path / certificate, tmp_path / key)


def test_a_request_is_signed_for_the_name_it_asks_for_and_no_other(authority):
    key, asked = request("a-0")
    certificate = leaf(authority.sign_request(asked, "a-0"))
    assert certificate.public_key() == load_pem_private_key(key, None).public_key()
    certificate.verify_directly_issued_by(authority.certificate)
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(ConfigError, match="asks for"):
        authority.sign_request(asked, "operator")
    with pytest.raises(ConfigError, match="not one in PEM"):
        authority.sign_request(key, "a-0")
