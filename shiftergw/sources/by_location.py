"""Choose the source of an image by the location in its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from shiftergw.model.images import Descriptor, Digest, ImageConfig, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.ports import ImageSource

if TYPE_CHECKING:
    from shiftergw.ports import BlobSink, Notify


class SourcesByLocation:
    """The `ImageSource` over all locations of the configuration."""

    def __init__(
        self,
        registries: ImageSource,
        directories: Mapping[str, ImageSource],
        locate: Callable[[ImageReference], tuple[str, str]],
    ) -> None:
        """Use `directories` for the locations of these names, and `registries` for all others.

        `locate` splits the name of a reference into that of a location and a repository there.
        """
        self._registries = registries
        self._directories = directories
        self._locate = locate

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, notify: Notify
    ) -> Digest | None:
        """Return the digest that the reference means now; None if the source does not tell."""
        source, reference = self._choose(reference)
        return await source.head(reference, login, notify)

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: RegistryLogin | None,
        notify: Notify,
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return what the reference means now for this platform, and its configuration."""
        source, reference = self._choose(reference)
        return await source.resolve(reference, platform, login, notify)

    async def prove(
        self, image: ResolvedImage, login: RegistryLogin | None, notify: Notify
    ) -> None:
        """Return if the login may read every blob of an image."""
        await self._source_of(image).prove(image, login, notify)

    async def blob(
        self,
        image: ResolvedImage,
        blob: Descriptor,
        login: RegistryLogin | None,
        notify: Notify,
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Stream a blob of an image."""
        await self._source_of(image).blob(image, blob, login, notify, offset, sink)

    def _choose(self, reference: ImageReference) -> tuple[ImageSource, ImageReference]:
        """Return the source of a reference, and the reference as this source reads it."""
        location, repository = self._locate(reference)
        directory = self._directories.get(location)
        if directory is None:
            return self._registries, reference
        return directory, replace(reference, name=repository)

    def _source_of(self, image: ResolvedImage) -> ImageSource:
        return self._directories.get(image.location, self._registries)
