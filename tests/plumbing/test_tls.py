"""Certificates are refused unless they verify; the error names the certificate and its fault.

`tests/test_impostors.py` has the table of certificates, over everything that connects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from shiftergw.plumbing import tls
from shiftergw.plumbing.tls import CertificateRefused, ClientTls
from tests.certificates import Authority
from tests.impostors import Listener, host_name, listening
from tests.sources.registry.network import REACTOR


class Speaker(Protocol):
    """A client that speaks first, as HTTP's and MongoDB's do."""

    def __init__(self) -> None:
        """Wait for the connection."""
        self.end: Deferred[Failure] = Deferred()

    def connectionMade(self) -> None:
        """Send something secret."""
        assert self.transport is not None
        self.transport.write(b"secret")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Pass the reason on."""
        self.end.callback(reason.value)  # type: ignore[arg-type]  # an exception is a result here


async def ending(client: ClientTls, host: str, listener: Listener) -> Any:
    """Return the reason for the end of a connection."""
    endpoint = HostnameEndpoint(REACTOR, "127.0.0.1", listener.port)
    tls_endpoint = wrapClientTLS(client.to(host), endpoint)
    speaker: Any = await tls_endpoint.connect(Factory.forProtocol(Speaker))
    return await speaker.end


def trusting(authority: Authority, **options: Any) -> ClientTls:
    """Return a client that trusts an authority."""
    return ClientTls(x509.load_pem_x509_certificates(authority.pem.read_bytes()), **options)


@pytest_twisted.ensureDeferred
async def test_an_error_during_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in our own code refuses the certificate, without a traceback."""

    def fail(_: x509.Certificate) -> list[Any]:
        raise AttributeError("a later version has no such thing")

    monkeypatch.setattr(tls, "_names_of", fail)
    authority = Authority(tmp_path)
    with capturedLogs() as log:
        async with listening(authority.server_file(host_name("localhost"))) as listener:
            error = await ending(trusting(authority), "localhost", listener)
    assert isinstance(error, CertificateRefused)
    assert error.problem == "cannot be read"
    assert listener.plaintext == b""
    assert [event for event in log if "log_failure" in event] == []


@pytest.mark.parametrize("host", ["localhost.", "LOCALHOST"])
@pytest_twisted.ensureDeferred
async def test_a_host_in_another_spelling(host: str, tmp_path: Path) -> None:
    """A trailing dot and capital letters do not matter."""
    authority = Authority(tmp_path)
    async with listening(authority.server_file(host_name("localhost"))) as listener:
        await ending(trusting(authority), host, listener)
    assert listener.plaintext == b"secret"


@pytest.mark.parametrize("host", ["", "2130706433", "a b", "[::1]", "*", "bücher.example"])
@pytest_twisted.ensureDeferred
async def test_a_host_that_no_certificate_names(host: str, tmp_path: Path) -> None:
    """A host that no certificate can name is refused."""
    authority = Authority(tmp_path)
    async with listening(authority.server_file(host_name("localhost"))) as listener:
        error = await ending(trusting(authority), host, listener)
    assert isinstance(error, CertificateRefused)
    assert error.fault == "names"
    assert listener.plaintext == b""


@pytest_twisted.ensureDeferred
async def test_names_and_certificates_that_a_configuration_allows(tmp_path: Path) -> None:
    """`any_name` still requires a trusted authority, `any_certificate` nothing."""
    (tmp_path / "stranger").mkdir()
    authority, stranger = Authority(tmp_path), Authority(tmp_path / "stranger")
    pem = authority.server_file(host_name("other.example"))
    cases = [
        (trusting(authority, any_name=True), True),
        (trusting(stranger, any_name=True), False),
        (ClientTls(any_certificate=True), True),
    ]
    for client, is_accepted in cases:
        async with listening(pem) as listener:
            await ending(client, "localhost", listener)
        assert bool(listener.plaintext) is is_accepted


@pytest_twisted.ensureDeferred
async def test_many_names(tmp_path: Path) -> None:
    """An error shows the first names of a certificate on one line."""
    authority = Authority(tmp_path)
    names = [x509.DNSName(f"{number}.example") for number in range(50)]
    async with listening(authority.server_file(*names)) as listener:
        error = await ending(trusting(authority), "localhost", listener)
    assert error.problem == "is for 0.example, 1.example, 2.example and 47 more, not for localhost"
    assert error.certificate.startswith("subject CN=server, issuer CN=tests, serial ")


def test_whose_certificate_it_is(tmp_path: Path) -> None:
    """The error distinguishes a fault of an authority's certificate from one of the server's."""
    authority = Authority(tmp_path)
    certificate = x509.load_pem_x509_certificate(authority.pem.read_bytes())
    fault, problem = tls._problem_of(10, certificate)
    assert (fault, problem[:11]) == ("time", "expired on ")
    connections: Any = trusting(authority).to("localhost")
    refusal = connections._refusal(certificate, 10, 1)
    assert "comes with an authority's certificate that expired on" in str(refusal)
    assert "verification error 999" in str(connections._refusal(certificate, 999, 0))
