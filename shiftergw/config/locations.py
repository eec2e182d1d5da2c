"""The section `Locations` of imagemanager.json: registries, their mirrors, and directories."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from shiftergw.config.document import Section
from shiftergw.config.values import HOST, Hosts, LocalPath, registry_base, registry_url
from shiftergw.model.names import DOCKER_HUB_HOSTS

ANY_REGISTRY = "*"
"""The name of the location that stands for every registry which has no location of its own."""

REGISTRY = "dockerv2"
"""The `remotetype` of a registry, and of the location `*`."""

OCI_LAYOUT = "oci-layout"
"""The `remotetype` of a location that is a directory of the site's with OCI layouts."""

_DEFAULT_PORTS = {"https": ":443", "http": ":80"}
_PATH = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")

TlsVersion = Literal["1.2", "1.3"]
"""The least version of TLS."""


def _host_patterns(value: Any) -> tuple[str, ...]:
    message = 'must be a list of "host", "host:port" or "*.domain"'
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(message)
    patterns = tuple(pattern.lower() for pattern in value)
    if not all(HOST.fullmatch(pattern.removeprefix("*.")) for pattern in patterns):
        raise ValueError(message)
    return patterns


HostPatterns = Annotated[tuple[str, ...], BeforeValidator(_host_patterns)]
"""`host` or `host:port`, or `*.domain` for all hosts below a domain, in lower case."""


def _repository_path(value: str) -> str:
    path = value.strip("/")
    if path and not _PATH.fullmatch(path):
        raise ValueError("must be a path in lower case, such as dockerhub-proxy")
    return path


RepositoryPath = Annotated[str, AfterValidator(_repository_path)]
"""Components of a repository's name, without a slash at the ends."""


def _mirror_url(value: str) -> str:
    base, path = registry_url(value), urlsplit(value).path.strip("/")
    return f"{base}/{_repository_path(path)}" if path else base


MirrorUrl = Annotated[str, AfterValidator(_mirror_url)]
"""`https://HOST[:PORT][/PATH]`; the path is in front of the repositories."""


def _location_url(value: str, info: ValidationInfo) -> str:
    if info.data.get("remote_type") != OCI_LAYOUT:
        return registry_base(value, info)
    url = urlsplit(value)
    path = unquote(url.path)
    is_plain = url.netloc in {"", "localhost"} and not url.query and not url.fragment
    if url.scheme != "file" or not is_plain or not path.startswith("/") or not path.isprintable():
        raise ValueError("must be file:// and an absolute path, such as file:///images/oci")
    return f"file://{quote(path)}"


LocationUrl = Annotated[str, AfterValidator(_location_url)]
"""The URL of a registry, or that of a directory with the `remotetype` `oci-layout`."""


class RegistryHost(Section):
    """How one host is reached: the keys that a location and a mirror have in common.

    `trusted_hosts` (`host` or `host:port`) may have addresses that are otherwise forbidden; the
    registry may redirect the gateway to them for tokens and blobs.
    """

    ca_certificate: LocalPath | None = Field(None, alias="sslcacert")
    client_certificate: LocalPath | None = Field(None, alias="clientCertificate")
    client_key: LocalPath | None = Field(None, alias="clientKey")
    least_tls: TlsVersion = Field("1.2", alias="leastTls")
    trusted_hosts: Hosts = Field((), alias="trustedHosts")


class MirrorSection(RegistryHost):
    """`Locations.L.mirrors`: a registry that has images of the location L.

    `prefix`, or the path of `url`, is in front of the repositories there. A `standalone` mirror is
    asked what a tag means, and everything that it has counts as public.
    """

    url: MirrorUrl = Field(alias="url")
    prefix: RepositoryPath = Field("", alias="prefix")
    login: LocalPath | None = Field(None, alias="login")
    standalone: bool = Field(default=False, alias="standalone")

    @property
    def host(self) -> str:
        """Return `host` or `host:port`."""
        return urlsplit(self.url).netloc

    @property
    def base(self) -> str:
        """Return the URL without its path."""
        return f"{urlsplit(self.url).scheme}://{self.host}"

    @property
    def path(self) -> str:
        """Return the path in front of the repositories."""
        return "/".join(filter(None, (urlsplit(self.url).path.strip("/"), self.prefix)))


class LocationSection(RegistryHost):
    """`Locations.L`: one registry, or one directory with OCI layouts (`oci-layout`).

    `name` is its key L in the document, used in references.

    The location `*` stands for every other registry; `allow` and `deny` are patterns of hosts.
    """

    never_read: ClassVar[frozenset[str]] = frozenset({"authentication"})

    name: str = ""
    remote_type: Literal["dockerv2", "oci-layout"] = Field(alias="remotetype")
    url: LocationUrl = Field("", alias="url")
    auth_method: Literal["token", "basic"] = Field("token", alias="authMethod")
    mirrors: tuple[MirrorSection, ...] = Field((), alias="mirrors")
    allow: HostPatterns | None = Field(None, alias="allow")
    deny: HostPatterns = Field((), alias="deny")

    @property
    def is_registry(self) -> bool:
        """Return whether this is a registry, or `*`, which stands for registries."""
        return self.remote_type == REGISTRY

    @property
    def directory(self) -> Path | None:
        """Return the directory of a location with OCI layouts; None for any other location."""
        return Path(unquote(urlsplit(self.url).path)) if self.remote_type == OCI_LAYOUT else None

    def may_have(self, host: str) -> bool:
        """Return whether the lists of the location `*` let users pull from a host.

        A pattern for one of Docker Hub's hosts is for all of them: users write any.
        """
        hosts = DOCKER_HUB_HOSTS if host in DOCKER_HUB_HOSTS else (host,)
        if any(_matches(pattern, name) for pattern in self.deny for name in hosts):
            return False
        return self.allow is None or any(
            _matches(pattern, name) for pattern in self.allow for name in hosts
        )


def registries(
    locations: Mapping[str, LocationSection],
) -> dict[str, LocationSection]:
    """Return the locations that are registries; other sources and `*` are left out."""
    return {
        name: location
        for name, location in locations.items()
        if name != ANY_REGISTRY and location.is_registry
    }


def _matches(pattern: str, host: str) -> bool:
    """Return whether a pattern covers `host` or `host:port`; without a port, it covers all ports.

    The default port of https is written in neither.
    """
    name, _, port = _split_port(host)
    pattern_name, colon, pattern_port = _split_port(pattern)
    if colon and (pattern_port or "443") != (port or "443"):
        return False
    if pattern_name.startswith("*."):
        return name.endswith(pattern_name[1:])
    return name == pattern_name


def _split_port(host: str) -> tuple[str, str, str]:
    """Split `host:port`, whose host may be an IPv6 address in brackets."""
    name, colon, port = host.rpartition(":")
    return (name, colon, port) if colon and port.isdigit() else (host, "", "")


def _complete(locations: dict[str, LocationSection]) -> dict[str, LocationSection]:
    """Set the name of each location to its key, and its URL, by default, to HTTPS on that host."""
    return {
        name: location.model_copy(
            update={
                "name": name,
                "url": location.url or _default_url(name, location),
            }
        )
        for name, location in locations.items()
    }


def _default_url(name: str, location: LocationSection) -> str:
    return f"https://{name}" if name != ANY_REGISTRY and location.is_registry else ""


Locations = Annotated[dict[str, LocationSection], AfterValidator(_complete)]


def expand_mirrors(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document whose mirrors are objects; a text is the URL of one."""
    locations = document.get("Locations")
    if not isinstance(locations, dict):
        return dict(document)
    result = {
        name: {
            **location,
            "mirrors": [
                {"url": mirror} if isinstance(mirror, str) else mirror
                for mirror in location["mirrors"]
            ],
        }
        if isinstance(location, dict) and isinstance(location.get("mirrors"), list)
        else location
        for name, location in locations.items()
    }
    return {**document, "Locations": result}


def without_default_port(host: str, url: str) -> str:
    """Return a host without the default port of the URL's scheme."""
    return host.removesuffix(_DEFAULT_PORTS.get(urlsplit(url).scheme or "https", ""))
