"""What MongoDBURI says: hosts, credentials, TLS, and how safe a write must be.

Timeouts, the number of connections and where to read are the gateway's own matter: what a URI says
of them has no effect. What it says of safety either holds or is refused.
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
"""How we can say who we are; the first two also without being told which."""

_EXTERNAL = "$external"
"""Where users are that the server knows from elsewhere: by a certificate, or a directory."""

_REFUSED = {
    "tlsCRLFile": "lists of revoked certificates are not read",
    "loadBalanced": "there must be no load balancer in between",
}
"""Options that we do not keep, though whoever wrote them relies on them."""

_UNREADABLE = (PyMongoError, ValueError, TypeError, OSError)
"""What pymongo raises for a URI, or a file that it names."""

_SECRETS = re.compile(r"((?:password|properties)=)[^&;]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MongoHost:
    """A server's name and port; without a port it is the path of a socket on this machine."""

    name: str
    port: int | None

    def __str__(self) -> str:
        """Return it as an admin would write it."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if self.port is None else f"{name}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> MongoHost:
        """Read `host:port`, as a server names others."""
        name, _, port = text.rpartition(":")
        return cls(name.strip("[]"), int(port)) if name and port.isdigit() else cls(text, 27017)


@dataclass(frozen=True, slots=True)
class MongoLogin:
    """Who we are to the server: a user of the database `source`. `mechanism` None: see there."""

    user: str
    password: str = field(repr=False)
    source: str = "admin"
    mechanism: str | None = None


@dataclass(frozen=True, slots=True)
class MongoTls:
    """How the server's certificate is judged, and which is ours."""

    authorities: Path | None = None
    own: Path | None = None
    own_password: str | None = field(default=None, repr=False)
    any_certificate: bool = False
    any_name: bool = False


@dataclass(frozen=True, slots=True)
class MongoAddress:
    """Everything that a MongoDBURI says and we keep.

    `concern` is what makes a write safe: by default it has reached the journals of most members.
    """

    hosts: tuple[MongoHost, ...]
    login: MongoLogin | None = None
    tls: MongoTls | None = None
    replica_set: str | None = None
    concern: Mapping[str, Any] = field(default_factory=lambda: {"w": "majority", "j": True})

    @classmethod
    def parse(cls, uri: str) -> MongoAddress:
        """Read a URI, and look for the files that it names; blocks, shortly.

        Raises `ConfigurationError` that says what is wrong, and never a secret of the URI.
        """
        if "://" not in uri:  # a host alone, as pymongo takes it
            uri = f"mongodb://{uri}"
        if uri.startswith("mongodb+srv:"):
            raise _wrong("mongodb+srv: is not supported: write mongodb:// and name the hosts")
        try:
            found = _parsed(uri)
        except _UNREADABLE as error:
            raise _wrong(_why(uri, error)) from None
        options = {name.lower(): value for name, value in found["options"].items()}
        for name, why in _REFUSED.items():
            if options.get(name.lower()):
                raise _wrong(f"{name}: {why}")
        return cls(
            hosts=tuple(MongoHost(name, port) for name, port in found["nodelist"]),
            login=_login(found, options),
            tls=_tls(options),
            replica_set=options.get("replicaset"),
            concern=_concern(options),
        )


def _wrong(why: str) -> ConfigurationError:
    return ConfigurationError(f"MongoDBURI: {why}.", remedy="Correct it and start again.")


def _parsed(uri: str) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(parse_uri(uri))


def _why(uri: str, error: Exception) -> str:
    """Return what is wrong with a URI, as told of the same one without its secrets."""
    scheme, separator, rest = uri.partition("://")
    login, at, place = rest.rpartition("@")
    place = _SECRETS.sub(r"\1secret", place)
    try:
        _parsed(
            f"{scheme}{separator}user:password@{place}"
            if login + at
            else scheme + separator + place
        )
    except _UNREADABLE as told:
        return printable(str(told).rstrip("."))
    if at:
        return "special characters of its user and password must be percent-encoded"
    return printable(f"a secret in it cannot be read ({type(error).__name__})")


def _login(found: Mapping[str, Any], options: Mapping[str, Any]) -> MongoLogin | None:
    user, mechanism = found["username"], options.get("authmechanism")
    if mechanism == "DEFAULT":
        mechanism = None
    if mechanism not in {None, *MECHANISMS}:
        raise _wrong(f"authMechanism: must be one of {', '.join(MECHANISMS)}")
    if user is None and mechanism != X509:
        if mechanism is not None:
            raise _wrong("authMechanism: it needs a user")
        return None
    if mechanism != X509 and not found["password"]:
        raise _wrong("its user has no password")
    if mechanism == PLAIN and not options.get("tls"):
        raise _wrong("authMechanism: PLAIN sends the password as it is: it needs tls=true")
    elsewhere = mechanism in {X509, PLAIN}
    source = _EXTERNAL if elsewhere else found["database"] or "admin"
    return MongoLogin(
        user or "", found["password"] or "", options.get("authsource") or source, mechanism
    )


def _tls(options: Mapping[str, Any]) -> MongoTls | None:
    if not options.get("tls"):
        return None
    authorities, own = options.get("tlscafile"), options.get("tlscertificatekeyfile")
    insecure = bool(options.get("tlsinsecure"))
    return MongoTls(
        authorities=None if authorities is None else Path(authorities),
        own=None if own is None else Path(own),
        own_password=options.get("tlscertificatekeyfilepassword"),
        any_certificate=insecure or bool(options.get("tlsallowinvalidcertificates")),
        any_name=insecure or bool(options.get("tlsallowinvalidhostnames")),
    )


def _concern(options: Mapping[str, Any]) -> dict[str, Any]:
    w = options.get("w", "majority")
    if w == 0:
        raise _wrong("w: 0 is for writes that may get lost; leave it out")
    # One alone may forget at a change of the primary whom it gave a lease. A single server is most.
    return {"w": "majority" if w == 1 else w, "j": bool(options.get("journal", True))}
