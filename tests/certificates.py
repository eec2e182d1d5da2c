"""Certificates for tests, signed by an authority that nobody else knows."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

DAY = dt.timedelta(days=1)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


class Authority:
    """Signs certificates; its own lies in `file`."""

    def __init__(self, directory: Path) -> None:
        """Make a key and a certificate, in this directory."""
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("authority of a test")
        basic = x509.BasicConstraints(ca=True, path_length=None)
        made = self._certificate(self._name, self._key.public_key(), basic)
        self.file = directory / "authority.pem"
        self.file.write_bytes(made.public_bytes(Encoding.PEM))

    def _certificate(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def sign(self, file: str, host: str, password: str = "") -> Path:
        """Return a file with a key, perhaps locked, and a certificate for this host's name."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        made = self._certificate(_named(host), key.public_key(), names)
        lock = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        path = self._directory / f"{file}.pem"
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
            + made.public_bytes(Encoding.PEM)
        )
        return path
