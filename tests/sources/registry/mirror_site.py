"""A location with mirrors on the loopback, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from shiftergw.model.images import Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobSink
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import Location, Mirror
from shiftergw.sources.registry.names import RegistryNames
from shiftergw.sources.registry.options import RegistryOptions
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.shared_breakers import SharedBreakers
from tests.registries import FakeRegistry
from tests.sources.registry.network import HASTY, REACTOR, SHORT


class Site:
    """A location with mirrors, a client of it, and the messages of the client to its user."""

    def __init__(self, origin: FakeRegistry, mirrors: list[FakeRegistry]) -> None:
        """Store the servers."""
        self.origin = origin
        self.mirrors = mirrors
        self.words: list[str] = []
        self.client: Any = None

    async def resolve(
        self, name: str = "team/app", login: RegistryLogin | None = None
    ) -> ResolvedImage:
        """Resolve a name."""
        reference = ImageReference.parse(name)
        image, _ = await self.client.resolve(reference, Platform(), login, self.words.append)
        result: ResolvedImage = image
        return result

    async def fetch(
        self,
        image: ResolvedImage,
        sink: BlobSink,
        login: RegistryLogin | None = None,
        offset: int = 0,
    ) -> None:
        """Download the first layer of an image."""
        await self.client.blob(image, image.layers[0], login, self.words.append, offset, sink)


@asynccontextmanager
async def site(
    origin: FakeRegistry,
    *mirrors: FakeRegistry,
    name: str = "test",
    shared_breakers: SharedBreakers | None = None,
    **options: Any,
) -> AsyncIterator[Site]:
    """Run servers, and a client of a location that has all of `mirrors` in this order.

    `options` are those of each `Mirror`; `path` is in front of its repositories.
    """
    path = options.pop("path", "")
    async with AsyncExitStack() as servers:
        for registry in (origin, *mirrors):
            await registry.start()
            servers.push_async_callback(registry.stop)
        mirror_places = tuple(
            Mirror(
                Location(mirror.host, f"http://{mirror.host}", path=path, is_mirror=True),
                **options,
            )
            for mirror in mirrors
        )
        location = Location(name, f"http://{origin.host}", mirrors=mirror_places)
        place = Site(origin, list(mirrors))
        names = RegistryNames({name: location}, lambda reference: (name, reference.name))
        breakers = shared_breakers or SharedBreakers()
        place.client = RegistryClient(
            REACTOR, names, Proxies({}), RegistryOptions(SHORT, HASTY, lambda: 0.5, breakers)
        )
        try:
            yield place
        finally:
            await place.client.close()
            await pause(0.02, REACTOR)
