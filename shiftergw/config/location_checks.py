"""Check rules that concern several keys of `Locations`, and warn of their surprising effects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shiftergw.config.document import place
from shiftergw.config.locations import (
    ANY_REGISTRY,
    OCI_LAYOUT,
    LocationSection,
    registries,
    without_default_port,
)
from shiftergw.config.values import HOST
from shiftergw.errors import printable

_KEYS_OF_DIRECTORIES = frozenset({"remotetype", "url", "authMethod", "authentication"})
"""The keys of a directory with OCI layouts. Many configurations have the last two in vain."""

_KEYS_OF_ONE_REGISTRY = frozenset({"url", "mirrors", "clientCertificate", "clientKey"})
_KEYS_OF_ANY = frozenset({"allow", "deny"})


def location_problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a problem for each key of `Locations` that is wrong because of another key."""
    locations = document.get("Locations")
    if not isinstance(locations, dict):
        return
    for name, location in locations.items():
        if isinstance(location, dict):
            yield from _key_problems(name, location)
            yield from _client_problems(place("Locations", name), location)
            mirrors = location.get("mirrors")
            for number, mirror in enumerate(mirrors if isinstance(mirrors, list) else ()):
                if isinstance(mirror, dict):
                    yield from _client_problems(place("Locations", name, "mirrors", number), mirror)
    default = document.get("DefaultImageLocation")
    if isinstance(default, str) and (default not in locations or default == ANY_REGISTRY):
        names = printable(", ".join(name for name in locations if name != ANY_REGISTRY))
        yield f"DefaultImageLocation: must be one of the Locations: {names}"


def _key_problems(name: str, location: Mapping[str, Any]) -> Iterator[str]:
    """Yield a problem for each key that a location of this name must, or cannot, have."""
    where = place("Locations", name)
    if name == ANY_REGISTRY:
        for key in sorted(_KEYS_OF_ONE_REGISTRY & location.keys()):
            yield f"{where}.{key}: cannot be the same for every registry: remove it"
        return
    if location.get("remotetype") == OCI_LAYOUT:
        yield from _directory_problems(where, location)
        return
    if location.get("url") is None and not HOST.fullmatch(name.lower()):
        yield f"{where}.url: is required because the name is not a host"
    for key in sorted(_KEYS_OF_ANY & location.keys()):
        yield f'{where}.{key}: is a list of the location "{ANY_REGISTRY}" only'


def _directory_problems(where: str, location: Mapping[str, Any]) -> Iterator[str]:
    """Yield a problem for each key that a directory with OCI layouts lacks or cannot have."""
    if location.get("url") is None:
        yield f"{where}.url: is required: file:// and the path of a directory with OCI layouts"
    fields = {field.alias for field in LocationSection.model_fields.values()}
    for key in sorted((location.keys() & fields) - _KEYS_OF_DIRECTORIES):
        yield f"{where}.{key}: has no meaning for a directory: remove it"


def _client_problems(where: str, section: Mapping[str, Any]) -> Iterator[str]:
    if section.get("clientKey") is not None and section.get("clientCertificate") is None:
        yield f"{where}.clientKey: needs clientCertificate"


def location_advice(locations: Mapping[str, LocationSection]) -> Iterator[str]:
    """Yield a warning for each location whose effect differs from what its author may expect."""
    spellings: dict[str, str] = {}
    for name, location in registries(locations).items():
        first_name = spellings.setdefault(without_default_port(name.lower(), location.url), name)
        if first_name != name:
            yield (
                f"{place('Locations', name)}: {first_name} is the same name to users, who write"
                " it in any case and with or without the default port"
            )
        for number, mirror in enumerate(location.mirrors):
            if mirror.login is not None and mirror.url.startswith("http:"):
                yield (
                    f"{place('Locations', name, 'mirrors', number, 'login')}: is sent without"
                    " TLS, and everybody on the network can read it"
                )
