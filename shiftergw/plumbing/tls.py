"""TLS to servers: certificates are verified inside the handshake, before any byte is sent.

All client connections of Twisted get their TLS here; `tls_context.py` has it for sockets of the
standard library. Only a proven host name passes; whatever else happens during verification is a
refusal.

Twisted's `optionsForClientTLS` is not used. Some of its versions (26.10 for one) accept a
certificate whose names cannot be judged at all: without subjectAltName, with an e-mail address
alone, or with a malformed wildcard. They catch `VerificationError` alone, and service-identity
also raises `CertificateError` and `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from weakref import ref

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509, PKey
from service_identity.exceptions import CertificateError
from service_identity.hazmat import DNS_ID, DNSPattern, IPAddress_ID
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from shiftergw.errors import printable

Fault = Literal["authority", "time", "names", "other"]
"""The fault of a certificate: its signer, its dates, its host names, or something else."""

_NOT_YET_VALID_ERROR, _EXPIRED_ERROR = 9, 10
_PROBLEMS: dict[int, tuple[Fault, str]] = {
    2: ("authority", "is signed by an authority that is not trusted"),
    7: (
        "authority",
        "is signed by an authority that is not trusted, but has the name of one that is",
    ),
    18: ("authority", "is self-signed and not trusted"),
    19: ("authority", "is signed by an authority that is not trusted"),
    20: ("authority", "is signed by an authority that is not trusted"),
    21: ("authority", "is signed by an authority that is not trusted"),
    23: ("other", "is revoked"),
    24: ("authority", "is signed by a certificate that is not an authority's"),
    26: ("other", "is not meant for servers (its extended key usage)"),
    66: ("other", "has a key that is too short"),
    67: ("authority", "is signed by an authority with a key that is too short"),
    68: ("authority", "is signed with an outdated hash algorithm"),
}
"""By OpenSSL's number of a verification error (`X509_V_ERR_...` in x509_vfy.h)."""

_REMEDIES: dict[Fault, str] = {
    "authority": "Trust its authority, or have the server use a certificate of a trusted one.",
    "time": "Whoever runs the server must renew it; if its dates are right, this machine's clock"
    " is wrong.",
    "names": "Whoever runs the server must list the host in the certificate's subjectAltName"
    " (the common name does not count); or use a host that it lists.",
    "other": "Whoever runs the server must replace it.",
}

_SHOWN_NAMES = 3

_TLS_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}


class CertificateRefused(Exception):
    """A server's certificate does not prove that the server is the expected host.

    `problem` completes "The certificate ..."; `certificate` describes the certificate.
    """

    def __init__(self, fault: Fault, problem: str, certificate: str) -> None:
        """Describe the problem, and derive the remedy from `fault`."""
        super().__init__(f"the server's certificate {problem}")
        self.fault = fault
        self.problem = problem
        self.remedy = _REMEDIES[fault]
        self.certificate = certificate


class ClientTls:
    """Makes TLS connections to hosts whose certificates are verified.

    `authorities` are trusted instead of the system's authorities. `key` and `chain` are our own
    certificate, the leaf first. `any_name` accepts every host name, `any_certificate` every
    certificate. Servers must speak at least TLS `least_version`.
    """

    def __init__(
        self,
        authorities: Sequence[x509.Certificate] | None = None,
        key: Any = None,
        chain: Sequence[x509.Certificate] = (),
        *,
        any_name: bool = False,
        any_certificate: bool = False,
        least_version: Literal["1.2", "1.3"] = "1.2",
    ) -> None:
        """Read the system's authorities if they are used, which blocks for a short time."""
        options: dict[str, Any] = {}
        if not any_certificate:
            options["trustRoot"] = (
                platformTrust()
                if authorities is None
                else trustRootFromCertificates(
                    [Certificate(X509.from_cryptography(authority)) for authority in authorities]
                )
            )
        if key is not None:
            leaf, *between = map(X509.from_cryptography, chain)
            options["privateKey"] = PKey.from_cryptography_key(key)
            options["certificate"] = leaf
            options["extraCertChain"] = between or None
        self._context = CertificateOptions(**options).getContext()
        self._context.set_min_proto_version(_TLS_VERSIONS[least_version])
        self._any_name = any_name
        self._any_certificate = any_certificate

    def to(self, host: str) -> _Connections:
        """Return the maker of connections to a host, given as a name or an address."""
        return _Connections(
            self._context, host, check_name=not self._any_name, check=not self._any_certificate
        )


@implementer(IOpenSSLClientConnectionCreator)
class _Connections:
    """Makes the connections to one host."""

    def __init__(self, context: SSL.Context, host: str, *, check_name: bool, check: bool) -> None:
        self._context = context
        self._host = host
        self._identity = _identity_of(host)
        self._check_name = check_name
        self._check = check

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N803
        """Return a connection whose handshake fails unless the certificate is good."""
        connection = SSL.Connection(self._context, None)
        if isinstance(self._identity, DNS_ID):
            connection.set_tlsext_host_name(self._identity.hostname)
        if not self._check:
            return connection
        # A weak reference: the protocol owns the connection, and a cycle would keep both alive.
        protocol = ref(tlsProtocol)

        def verify(_: SSL.Connection, certificate: X509, error: int, depth: int, ok: int) -> bool:
            try:
                refusal = self._refusal(certificate.to_cryptography(), 0 if ok else error, depth)
            except Exception:  # noqa: BLE001 - refuse what cannot be verified
                refusal = CertificateRefused("other", "cannot be read", "")
            if refusal is None:
                return True
            if (failing := protocol()) is not None:
                failing.failVerification(Failure(refusal))
            return False

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection

    def _refusal(
        self, certificate: x509.Certificate, error: int, depth: int
    ) -> CertificateRefused | None:
        """Return why a certificate of the chain is refused; depth 0 is the server's own."""
        if error:
            fault, problem = _problem_of(error, certificate)
            if depth:
                problem = f"comes with an authority's certificate that {problem}"
            return CertificateRefused(fault, problem, _description_of(certificate))
        if depth or not self._check_name:
            return None
        names = _names_of(certificate)
        if self._identity is not None and any(_matches(name, self._identity) for name in names):
            return None
        if not names:
            problem = f"names no host, and so not {self._host}"
        else:
            first_names = ", ".join(map(str, names[:_SHOWN_NAMES]))
            rest = "" if len(names) <= _SHOWN_NAMES else f" and {len(names) - _SHOWN_NAMES} more"
            problem = f"is for {printable(first_names)}{rest}, not for {self._host}"
        return CertificateRefused("names", problem, _description_of(certificate))


def _identity_of(host: str) -> DNS_ID | IPAddress_ID | None:
    """Return the identity that a certificate must prove; None if no certificate can name it."""
    try:
        return IPAddress_ID(host)
    except ValueError:
        pass
    try:
        return DNS_ID(host.removesuffix("."))
    except ValueError:
        return None


def _names_of(certificate: x509.Certificate) -> list[Any]:
    """Return the DNS names (text) and IP addresses of a certificate.

    Other kinds of names prove no host (RFC 9525, section 6); nor does the common name.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    names = extension.value
    return [*names.get_values_for_type(x509.DNSName), *names.get_values_for_type(x509.IPAddress)]


def _matches(name: Any, identity: DNS_ID | IPAddress_ID) -> bool:
    """Return whether a name of a certificate matches; service-identity handles wildcards."""
    if isinstance(identity, IPAddress_ID):
        return bool(name == identity.ip)
    if not isinstance(name, str):
        return False
    try:
        return identity.verify(DNSPattern.from_bytes(name.encode("ascii")))
    except (CertificateError, ValueError):  # a malformed pattern matches nothing
        return False


def _problem_of(error: int, certificate: x509.Certificate) -> tuple[Fault, str]:
    if error == _EXPIRED_ERROR:
        return "time", f"expired on {certificate.not_valid_after_utc:%Y-%m-%d at %H:%M} UTC"
    if error == _NOT_YET_VALID_ERROR:
        start = certificate.not_valid_before_utc
        return "time", f"is not valid before {start:%Y-%m-%d at %H:%M} UTC"
    return _PROBLEMS.get(error, ("other", f"is refused (OpenSSL's verification error {error})"))


def _description_of(certificate: x509.Certificate) -> str:
    """Return the subject, issuer and serial number of a certificate, in one line."""
    subject, issuer = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
    text = f"subject {subject or 'empty'}, issuer {issuer}, serial {certificate.serial_number:x}"
    return printable(text)
