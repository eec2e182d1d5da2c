"""Describe where the images of a repository are looked for, without any request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shiftergw.model.explanations import ImagePlace, PlaceKind, RequestLimit
from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.mirror_places import MirrorPlace
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.registries import Registry


def describe_places(
    origin: Registry,
    mirrors: Sequence[MirrorPlace],
    repository: str,
    login: RegistryLogin | None,
    proxies: Proxies,
) -> Iterator[ImagePlace]:
    """Yield the mirrors in their order, then the location itself, with their last known limits.

    `login` is that of the user, which mirrors never get.
    """
    for mirror in mirrors:
        place = mirror.registry, repository, mirror.login, proxies
        yield _describe(
            "mirror",
            *place,
            user="" if mirror.login is None else mirror.login.user,
            standalone=mirror.mirror.standalone,
        )
    yield _describe("registry", origin, repository, login, proxies)


def _describe(
    kind: PlaceKind,
    registry: Registry,
    repository: str,
    login: RegistryLogin | None,
    proxies: Proxies,
    *,
    user: str = "",
    standalone: bool = False,
) -> ImagePlace:
    location = registry.location
    proxy = proxies.proxy_for(location.origin)
    limits = (
        RequestLimit("" if account is None else account.user, limit.remaining, str(limit))
        for account in dict.fromkeys((None, login))
        if (limit := registry.limit_of(account)) is not None
    )
    return ImagePlace(
        kind,
        location.name,
        location.base,
        location.path_of(repository),
        "" if proxy is None else f"{proxy.host}:{proxy.port}",
        user,
        standalone,
        tuple(limits),
    )
