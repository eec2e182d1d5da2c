"""Files of a location on this machine: authorities, the client certificate and its key, a login.

All functions block shortly, and raise `ConfigurationError` with the key of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509 import Certificate, load_pem_x509_certificates

from shiftergw.errors import BadRequest, ConfigurationError
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.files import read_whole
from shiftergw.plumbing.tls import ClientTls
from shiftergw.sources.registry.location import Location, Mirror

T = TypeVar("T")

_PERMISSIONS_OF_OTHERS = 0o007


@dataclass(frozen=True, slots=True)
class LocationTls:
    """The TLS to a location itself, and that to hosts to which it sends the gateway.

    Both trust `cacert`, or the system's authorities: a location that needs both has both in the
    file. Only the first has the client certificate.
    """

    to_location: ClientTls
    to_redirects: ClientTls

    @classmethod
    def of(cls, location: Location) -> LocationTls:
        """Read the files of a location."""
        authorities = None
        if location.cacert is not None:
            authorities = _read_certificates(location, "sslcacert", location.cacert)
        plain = ClientTls(authorities, least_version=location.least_tls)
        if location.client_certificate is None:
            return cls(plain, plain)
        chain = client_chain(location)
        key = client_key(location, chain[0])
        return cls(ClientTls(authorities, key, chain, least_version=location.least_tls), plain)


def _read_certificates(location: Location, key: str, path: Path) -> list[Certificate]:
    return _read(location, key, path, "certificates in PEM", load_pem_x509_certificates)


def client_chain(location: Location) -> Sequence[Certificate]:
    """Return the client certificate of a location, and those of the authorities between."""
    assert location.client_certificate is not None
    return _read_certificates(location, "clientCertificate", location.client_certificate)


def client_certificate_dates(location: Location) -> tuple[datetime, datetime]:
    """Return the beginning and the end of the validity of the client certificate, in UTC."""
    certificate = client_chain(location)[0]
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def client_key(location: Location, certificate: Certificate) -> Any:
    """Return the private key of the client certificate."""
    path = location.client_key or location.client_certificate
    assert path is not None
    name = "clientCertificate" if location.client_key is None else "clientKey"
    key = _read(
        location,
        name,
        path,
        "a private key in PEM without a passphrase",
        lambda content: load_pem_private_key(content, None),
        is_secret=True,
    )
    if _encode(key.public_key()) != _encode(certificate.public_key()):
        raise ConfigurationError(
            f"{_place(location, name)} is the key of another certificate than"
            f" clientCertificate: {path}.",
            remedy="Name the key with which the certificate was requested.",
        )
    return key


def mirror_login(mirror: Mirror) -> RegistryLogin | None:
    """Return the gateway's own login at a mirror, if it has one."""
    if mirror.login_file is None:
        return None

    def parse(content: bytes) -> RegistryLogin:
        line = content.decode("utf-8").rstrip("\r\n")
        if ":" not in line or not line.isprintable():
            raise ValueError("not a login")
        return RegistryLogin.parse(line)

    return _read(
        mirror.location, "login", mirror.login_file, "one line user:password", parse, is_secret=True
    )


def _read(
    location: Location,
    key: str,
    path: Path,
    form: str,
    parse: Callable[[bytes], T],
    *,
    is_secret: bool = False,
) -> T:
    """Read a file, which must have a form; a secret must be closed to other users."""
    try:
        content, status = read_whole(path)
    except OSError as error:
        raise ConfigurationError(
            f"{_place(location, key)} cannot be read: {path}: {error.strerror}.",
            remedy="Make it readable for the gateway's user, or correct the path.",
        ) from error
    if is_secret and status.st_mode & _PERMISSIONS_OF_OTHERS:
        raise ConfigurationError(
            f"{_place(location, key)} is open to every user of this machine: {path}.",
            remedy=f"chmod o= {path}; then replace the secret in it.",
        )
    try:
        return parse(content)
    except (ValueError, TypeError, BadRequest):
        # The cause may quote the file: it is not kept.
        raise ConfigurationError(
            f"{_place(location, key)} cannot be read as {form}: {path}.",
        ) from None


def _place(location: Location, key: str) -> str:
    kind = "mirror" if location.is_mirror else "location"
    return f"The {key} of the {kind} {location.name!r}"


def _encode(public_key: Any) -> bytes:
    content: bytes = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return content
