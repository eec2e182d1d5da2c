"""Read MongoDBURI: hosts, login, TLS, and the write concern.

The gateway itself decides on timeouts, the number of connections and the read preference; options
of the URI for these have no effect. An option for safety is either observed or refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from shiftergw.errors import ConfigurationError, printable

X509 = "MONGODB-X509"
PLAIN = "PLAIN"
MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-1", X509, PLAIN)
"""The mechanisms for a login; the first two need not be named in the URI."""

_EXTERNAL = "$external"
"""The database of users that are not stored in MongoDB: they have a certificate, or are in LDAP."""

_UNSUPPORTED_OPTIONS = {
    "tlsCRLFile": "lists of revoked certificates are not read",
    "loadBalanced": "there must be no load balancer in between",
}
"""Options that cannot be observed, although the author of the URI relies on them."""

_UNREADABLE = (PyMongoError, ValueError, TypeError, OSError)
"""Errors of pymongo for a URI, or for a file that it names."""

_SECRETS = re.compile(r"((?:password|properties)=)[^&;]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MongoHost:
    """The name and the port of a server; without a port, the path of a socket on this machine."""

    name: str
    port: int | None

    def __str__(self) -> str:
        """Return the host as it is written in a URI."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if self.port is None else f"{name}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> MongoHost:
        """Read `host:port`, the form in which a server names other members."""
        name, _, port = text.rpartition(":")
        return cls(name.strip("[]"), int(port)) if name and port.isdigit() else cls(text, 27017)


@dataclass(frozen=True, slots=True)
class MongoLogin:
    """A user of the database `source`. For `mechanism` None see `mechanism_of`."""

    user: str
    password: str = field(repr=False)
    source: str = "admin"
    mechanism: str | None = None


@dataclass(frozen=True, slots=True)
class MongoTls:
    """The files of certificates, and how strictly the server's certificate is verified.

    `client_certificate` is the file of the gateway's certificate and key.
    """

    authorities: Path | None = None
    client_certificate: Path | None = None
    key_password: str | None = field(default=None, repr=False)
    any_certificate: bool = False
    any_name: bool = False


@dataclass(frozen=True, slots=True)
class MongoAddress:
    """The parts of a MongoDBURI that the gateway observes.

    By default a write must have reached the journals of most members (`write_concern`).
    """

    hosts: tuple[MongoHost, ...]
    login: MongoLogin | None = None
    tls: MongoTls | None = None
    replica_set: str | None = None
    write_concern: Mapping[str, Any] = field(default_factory=lambda: {"w": "majority", "j": True})

    @classmethod
    def parse(cls, uri: str) -> MongoAddress:
        """Read a URI and check that the files in it exist; this blocks shortly.

        Raises `ConfigurationError` with the reason, but without any secret of the URI.
        """
        if "://" not in uri:  # pymongo accepts a host alone
            uri = f"mongodb://{uri}"
        if uri.startswith("mongodb+srv:"):
            raise _invalid("mongodb+srv: is not supported: write mongodb:// and name the hosts")
        try:
            parts = _parse(uri)
        except _UNREADABLE as error:
            raise _invalid(_reason_without_secrets(uri, error)) from None
        options = {name.lower(): value for name, value in parts["options"].items()}
        for name, reason in _UNSUPPORTED_OPTIONS.items():
            if options.get(name.lower()):
                raise _invalid(f"{name}: {reason}")
        return cls(
            hosts=tuple(MongoHost(name, port) for name, port in parts["nodelist"]),
            login=_login(parts, options),
            tls=_tls(options),
            replica_set=options.get("replicaset"),
            write_concern=_write_concern(options),
        )


def _invalid(reason: str) -> ConfigurationError:
    return ConfigurationError(f"MongoDBURI: {reason}.", remedy="Correct it and start again.")


def _parse(uri: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(parse_uri(uri))


def _reason_without_secrets(uri: str, error: Exception) -> str:
    """Return why a URI is invalid: pymongo's reason for the same URI without its secrets."""
    scheme, separator, rest = uri.partition("://")
    login, at, location = rest.rpartition("@")
    location = _SECRETS.sub(r"\1secret", location)
    try:
        _parse(
            f"{scheme}{separator}user:password@{location}"
            if login + at
            else scheme + separator + location
        )
    except _UNREADABLE as harmless_error:
        return printable(str(harmless_error).rstrip("."))
    if at:
        return "special characters of its user and password must be percent-encoded"
    return printable(f"a secret in it cannot be read ({type(error).__name__})")


def _login(parts: Mapping[str, Any], options: Mapping[str, Any]) -> MongoLogin | None:
    user, mechanism = parts["username"], options.get("authmechanism")
    if mechanism == "DEFAULT":
        mechanism = None
    if mechanism not in {None, *MECHANISMS}:
        raise _invalid(f"authMechanism: must be one of {', '.join(MECHANISMS)}")
    if user is None and mechanism != X509:
        if mechanism is not None:
            raise _invalid("authMechanism: it needs a user")
        return None
    if mechanism != X509 and not parts["password"]:
        raise _invalid("its user has no password")
    if mechanism == PLAIN and not options.get("tls"):
        raise _invalid("authMechanism: PLAIN sends the password as it is: it needs tls=true")
    is_external = mechanism in {X509, PLAIN}
    source = _EXTERNAL if is_external else parts["database"] or "admin"
    return MongoLogin(
        user or "", parts["password"] or "", options.get("authsource") or source, mechanism
    )


def _tls(options: Mapping[str, Any]) -> MongoTls | None:
    if not options.get("tls"):
        return None
    authorities = options.get("tlscafile")
    client_certificate = options.get("tlscertificatekeyfile")
    insecure = bool(options.get("tlsinsecure"))
    return MongoTls(
        authorities=None if authorities is None else Path(authorities),
        client_certificate=None if client_certificate is None else Path(client_certificate),
        key_password=options.get("tlscertificatekeyfilepassword"),
        any_certificate=insecure or bool(options.get("tlsallowinvalidcertificates")),
        any_name=insecure or bool(options.get("tlsallowinvalidhostnames")),
    )


def _write_concern(options: Mapping[str, Any]) -> dict[str, Any]:
    w = options.get("w", "majority")
    if w == 0:
        raise _invalid("w: 0 is for writes that may get lost; leave it out")
    # A primary that alone has a lease may lose it when another server becomes the primary. On a
    # single server the majority is that server.
    return {"w": "majority" if w == 1 else w, "j": bool(options.get("journal", True))}
