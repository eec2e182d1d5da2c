"""Translate the registries of the configuration into those of the registry client."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from shiftergw.config import Config
from shiftergw.config.locations import (
    ANY_REGISTRY,
    LocationSection,
    MirrorSection,
    RegistryHost,
    registries,
)
from shiftergw.config.registries_conf import Endpoint, RegistryRule, normalize
from shiftergw.sources.registry.location import Location, Mirror
from shiftergw.sources.registry.names import RegistryNames


def registry_names(config: Config) -> RegistryNames:
    """Return the registries from which images may be pulled."""
    return RegistryNames(
        configured_locations(config),
        config.locate,
        partial(find_unnamed, config),
        unnamed_locations(config),
    )


def configured_locations(config: Config) -> dict[str, Location]:
    """Return the locations by name, with their mirrors."""
    return {
        name: configured_location(section) for name, section in registries(config.locations).items()
    }


def layout_directories(config: Config) -> dict[str, Path]:
    """Return the directories with OCI layouts, by the names of their locations."""
    return {
        name: section.directory
        for name, section in config.locations.items()
        if section.directory is not None
    }


def configured_location(section: LocationSection) -> Location:
    """Return a location and its mirrors."""
    return _location(
        section, section.name, section.url, mirrors=tuple(map(_mirror, section.mirrors))
    )


def _location(
    section: RegistryHost,
    name: str,
    url: str,
    *,
    path: str = "",
    is_mirror: bool = False,
    must_be_public: bool = False,
    mirrors: tuple[Mirror, ...] = (),
) -> Location:
    return Location(
        name,
        url,
        section.ca_certificate,
        section.trusted_hosts,
        section.client_certificate,
        section.client_key,
        section.least_tls,
        must_be_public,
        path=path,
        is_mirror=is_mirror,
        mirrors=mirrors,
    )


def _mirror(section: MirrorSection) -> Mirror:
    location = _location(section, section.host, section.base, path=section.path, is_mirror=True)
    return Mirror(location, section.login, section.standalone)


def unnamed_locations(config: Config) -> list[Location]:
    """Return an example of each kind of location that `find_unnamed` returns."""
    host = "registry.invalid"
    examples = [] if config.registries_conf is None else [Location(host, f"https://{host}")]
    section = config.locations.get(ANY_REGISTRY)
    if section is not None:
        examples.append(_location(section, host, f"https://{host}", must_be_public=True))
    return examples


def find_unnamed(config: Config, host: str, repository: str) -> Location | None:
    """Return the registry of a host that is no location, by `RegistriesConf` or the location `*`.

    The blocks and lists of both are checked again: a record may be older than they are.
    """
    rule = config.registry_rules.find(host, repository)
    if rule is not None:
        return None if rule.is_blocked else _location_of_rule(rule, host, repository)
    section = config.locations.get(ANY_REGISTRY)
    if section is None or not section.may_have(host):
        return None
    return _location(section, host, f"https://{host}", must_be_public=True)


def _location_of_rule(rule: RegistryRule, host: str, repository: str) -> Location:
    """Return what a rule says of a repository, which `rule` covers."""
    scheme = "http" if rule.insecure else "https"
    endpoint = rule.endpoint or Endpoint(f"{scheme}://{normalize(host, repository)[0]}")

    mirrors = tuple(
        Mirror(
            Location(
                mirror.endpoint.url.partition("://")[2],
                mirror.endpoint.url,
                cut_path=rule.path,
                path=mirror.endpoint.path,
                is_mirror=True,
            ),
            use=mirror.use,
        )
        for mirror in rule.mirrors
    )
    return Location(host, endpoint.url, cut_path=rule.path, path=endpoint.path, mirrors=mirrors)
