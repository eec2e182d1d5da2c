"""Certificates for tests, signed by an authority that only the tests trust."""

from __future__ import annotations

import datetime as dt
import ipaddress
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from OpenSSL import crypto
from twisted.internet.ssl import CertificateOptions


class Authority:
    """A new certificate authority, and the certificates that it signs."""

    def __init__(
        self, directory: Path, *names: x509.GeneralName, common_name: str = "tests"
    ) -> None:
        """Make the authority; `pem` is the file of its certificate, which may list host names."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
        extensions: list[tuple[Any, bool]] = [(x509.BasicConstraints(ca=True, path_length=0), True)]
        if names:
            extensions.append((x509.SubjectAlternativeName(names), False))
        self._certificate = self._sign(self._name, self._key, extensions)
        self.pem = directory / "authority.pem"
        self.pem.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def _sign(
        self,
        name: x509.Name,
        key: Any,
        extensions: list[tuple[Any, bool]],
        days: int = 1,
        since: int = -9,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=since))
            .not_valid_after(now + dt.timedelta(days=days))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())

    def _issue(self, key: Any, names: tuple[str, ...], days: int = 1) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        return self._sign(subject, key, [(alternatives, False)], days)

    def server_file(
        self,
        *names: x509.GeneralName,
        common_name: str = "server",
        usage: x509.ObjectIdentifier | None = None,
        since: int = -9,
        days: int = 1,
    ) -> Path:
        """Return a file with a key and a certificate that lists these names in subjectAltName.

        Without names it has no such extension. It is valid from `since` to `days` days from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        extensions: list[tuple[Any, bool]] = []
        if names:
            extensions.append((x509.SubjectAlternativeName(names), False))
        if usage is not None:
            extensions.append((x509.ExtendedKeyUsage([usage]), False))
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
        return self._write(key, self._sign(subject, key, extensions, days, since))

    def _write(self, key: Any, certificate: x509.Certificate) -> Path:
        path = self.pem.parent / f"server-{uuid.uuid4().hex}.pem"
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
        )
        return path

    def own_file(self) -> Path:
        """Return a file with the key and certificate of the authority itself."""
        return self._write(self._key, self._certificate)

    def options(self, *names: str) -> CertificateOptions:
        """Return the TLS options of a server with these names."""
        key: Any = ec.generate_private_key(ec.SECP256R1())
        return CertificateOptions(
            privateKey=crypto.PKey.from_cryptography_key(key),
            certificate=crypto.X509.from_cryptography(self._issue(key, names)),
        )

    def file(self, name: str, password: str = "", days: int = 1) -> Path:
        """Return a file with a key, which may have a password, and a certificate for a host.

        The certificate is valid for `days` days from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        lock = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        path = self.pem.parent / f"{name}-{uuid.uuid4().hex}.pem"
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
            + self._issue(key, (name,), days).public_bytes(Encoding.PEM)
        )
        return path


def _general_name(name: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)
