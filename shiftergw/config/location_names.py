"""Find the location that the name of an image means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from shiftergw.config.locations import ANY_REGISTRY, LocationSection, without_default_port
from shiftergw.config.registries_conf import RegistryRules
from shiftergw.config.values import HOST
from shiftergw.errors import BadRequest, NotAllowed, printable
from shiftergw.model.names import DOCKER_HUB_HOSTS, DOCKER_IO, is_host

if TYPE_CHECKING:
    from shiftergw.model.references import ImageReference


def find_location(locations: Mapping[str, LocationSection], host: str) -> str | None:
    """Return the name of the location that a host in front of an image name means, or None.

    Names have no case, and the default port goes without saying. All names of Docker Hub mean the
    location that is Docker Hub, by its name or else by its URL.
    """
    if host in locations and host != ANY_REGISTRY:
        return host
    host = host.lower()
    registries = {name: section for name, section in locations.items() if name != ANY_REGISTRY}
    for name, section in registries.items():
        if without_default_port(name.lower(), section.url) == without_default_port(
            host, section.url
        ):
            return name
    if host.removesuffix(":443") in DOCKER_HUB_HOSTS:
        names = {name.lower().removesuffix(":443"): name for name in registries}
        hosts = {urlsplit(section.url).hostname: name for name, section in registries.items()}
        candidates = [*map(names.get, DOCKER_HUB_HOSTS), *map(hosts.get, DOCKER_HUB_HOSTS)]
        return next((name for name in candidates if name is not None), None)
    return None


def canonical_host(host: str) -> str:
    """Return the name of the location of a registry that has none in the configuration."""
    host = host.lower().removesuffix(":443")
    return DOCKER_IO if host in DOCKER_HUB_HOSTS else host


def locate(
    locations: Mapping[str, LocationSection],
    default: str,
    rules: RegistryRules,
    reference: ImageReference,
) -> tuple[str, str]:
    """Return the location of a reference, and the repository in it.

    The location is one of `locations`, or the host of a registry that `rules` or the location `*`
    let users pull from. A name without a host means the `default` location. Raises `BadRequest`
    for a host that this gateway does not have, and `NotAllowed` for one that is blocked.
    """
    host, slash, rest = reference.name.partition("/")
    if not slash:
        return default, reference.name
    name = find_location(locations, host)
    if name is not None:
        return name, rest
    if not is_host(host):
        return default, reference.name
    host_text = printable(host, 80)
    rule = rules.find(host, rest)
    if rule is not None and rule.is_blocked:
        raise NotAllowed(
            f"This gateway's admins have blocked {printable(rule.prefix, 120)}.",
            remedy="Pull the image from another registry, or ask the admins.",
        )
    canonical = canonical_host(host)
    if rule is not None:
        return canonical, rest
    any_location = locations.get(ANY_REGISTRY)
    if any_location is not None and HOST.fullmatch(canonical):
        if any_location.may_have(canonical):
            return canonical, rest
        raise NotAllowed(
            f"This gateway does not pull from the registry {host_text}.",
            remedy='Ask its admins: the lists `allow` and `deny` of the location "*" decide.',
        )
    names = ", ".join(name for name in locations if name != ANY_REGISTRY)
    raise BadRequest(
        f"This gateway has no registry {host_text}.",
        remedy=f"It has {names}; its admins can add {host_text} to `Locations` in its"
        f" configuration. If this is the beginning of a repository of {default}, write"
        f" `{default}/{printable(reference.name, 120)}`.",
    )
