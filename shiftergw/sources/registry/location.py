"""Where images come from, and how URLs there are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urljoin, urlsplit

from shiftergw.errors import ConfigurationError
from shiftergw.model.names import DOCKER_HUB, DOCKER_IO

_PORTS = {"https": 443, "http": 80}
_NOT_IN_URLS = re.compile(r"[^!-~]")
_LONGEST_LABEL = 63
_LONGEST_HOST = 253
"""Characters of a part of a host name, and of all of it (RFC 1035, section 2.3.4)."""


@dataclass(frozen=True, slots=True)
class WebOrigin:
    """Scheme, host and port of a URL (RFC 6454): the server that gets credentials."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> WebOrigin:
        """Read it from an absolute URL; raise `ValueError` for what we do not fetch.

        Other schemes than http and https, a user name in the URL, no host or one that no name
        service can look up, and characters that no URL has.
        """
        if _NOT_IN_URLS.search(url) or "\\" in url:
            raise ValueError("a URL with characters that no URL has")
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
            raise ValueError("not an http or https URL with a plain host")
        # Python's look-up fails for such names with an error that Twisted's resolver drops: it
        # would never end.
        labels = parts.hostname.removesuffix(".").split(".")
        if len(parts.hostname) > _LONGEST_HOST or not all(
            0 < len(label) <= _LONGEST_LABEL for label in labels
        ):
            raise ValueError("a host name that is too long, or has an empty part")
        port = _PORTS[parts.scheme] if parts.port is None else parts.port
        return cls(parts.scheme, parts.hostname, port)

    @property
    def authority(self) -> str:
        """Return `host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def host_field(self) -> str:
        """Return the value of the `Host` field: without the port that goes without saying."""
        return self.authority.removesuffix(f":{_PORTS[self.scheme]}")


def target_of(base: str, reference: str) -> str:
    """Return the URL that a `Location` field means; an absolute one stays as signed.

    Its scheme alone is written in lower case. Raises `ValueError` as `WebOrigin.of`.
    """
    reference = reference.strip()
    url = reference if urlsplit(reference).scheme else urljoin(base, reference)
    url = url.partition("#")[0]
    WebOrigin.of(url)
    scheme, colon, rest = url.partition(":")
    return f"{scheme.lower()}{colon}{rest}"


TlsVersion = Literal["1.2", "1.3"]
MirrorUse = Literal["all", "digest-only", "tag-only"]


@dataclass(frozen=True, slots=True)
class Location:
    """A registry of the configuration, or one of its mirrors, and how it is reached.

    `url` is its base; a path in it is ignored. `cacert` is a PEM file of the authorities that are
    trusted instead of the system's. The registry may send the gateway to `trusted_hosts` (`host` or
    `host:port`) although their addresses are not public; with `must_be_public` its own address must
    be public too, unless it is listed. `client_certificate` and `client_key` are PEM files; the
    certificate's file may have the key too. A repository loses the leading path `cut_path` and gets
    `path` in front.
    """

    name: str
    url: str
    cacert: Path | None = None
    trusted_hosts: tuple[str, ...] = ()
    client_certificate: Path | None = None
    client_key: Path | None = None
    least_tls: TlsVersion = "1.2"
    must_be_public: bool = False
    cut_path: str = ""
    path: str = ""
    is_mirror: bool = False
    mirrors: tuple[Mirror, ...] = ()

    @property
    def title(self) -> str:
        """Return the beginning of sentences about it."""
        return f"The {'mirror' if self.is_mirror else 'registry'} {self.name!r}"

    def path_of(self, repository: str) -> str:
        """Return the path of a repository here; its name in references may be another one."""
        rest = f"{repository}/".removeprefix(f"{self.cut_path}/" if self.cut_path else "")
        return "/".join(filter(None, (self.path, rest.removesuffix("/"))))

    @property
    def origin(self) -> WebOrigin:
        """Return where its API is; raise `ConfigurationError` for an invalid URL."""
        try:
            origin = WebOrigin.of(self.url)
        except ValueError as error:
            raise ConfigurationError(
                f"The url of the location {self.name!r} is not a URL such as"
                " `https://registry.example.org`."
            ) from error
        # Docker Hub's name is a web site; its registry lives elsewhere.
        if origin.host == DOCKER_IO:
            return WebOrigin(origin.scheme, DOCKER_HUB, origin.port)
        return origin

    @property
    def base(self) -> str:
        """Return the URL under which the API begins."""
        return f"{self.origin.scheme}://{self.origin.host_field}"

    @property
    def is_docker_hub(self) -> bool:
        """Return whether one-component names mean `library/...` here.

        The name of the location decides, since users mean Docker Hub by it: a mirror has Docker
        Hub's repositories under another host (containerd#3236). Docker Hub itself is always meant.
        """
        hosts = (self.name.lower(), self.origin.host)
        return any(host == DOCKER_IO or host.endswith(f".{DOCKER_IO}") for host in hosts)

    def trusts(self, origin: WebOrigin) -> bool:
        """Return whether `trusted_hosts` lists this host."""
        return origin.host in self.trusted_hosts or origin.authority in self.trusted_hosts


@dataclass(frozen=True, slots=True)
class Mirror:
    """A registry that has images of a location, and which of them are looked for there.

    `login_file` has the gateway's own login, `user:password`. A `standalone` mirror is asked what a
    tag means, and all its images count as public; others get requests by digest alone, after the
    location itself has named the digest.
    """

    location: Location
    login_file: Path | None = None
    standalone: bool = False
    use: MirrorUse = "all"

    def has(self, *, by_digest: bool) -> bool:
        """Return whether references with, or without, a digest are looked for here."""
        return self.use == "all" or (self.use == "digest-only") is by_digest
