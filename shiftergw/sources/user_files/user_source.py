"""Present the file of a user as a source whose images are that user's."""

from __future__ import annotations

from dataclasses import replace

from shiftergw.model.images import Descriptor, Digest, ImageConfig, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.model.uploads import ImageFile
from shiftergw.ports import BlobSink, ImageSource, Notify


class UserSource:
    """An `ImageSource` over the file of a user.

    Its images are private unless the user has made them public, and their layers are kept apart
    from those of other users: a digest in a manifest must not lead to another user's content.
    """

    def __init__(self, source: ImageSource, file: ImageFile, uid: int | None) -> None:
        """Read the image of `source`, the file of the user `uid`."""
        self._source = source
        self._file = file
        self._uid = uid

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, notify: Notify
    ) -> Digest | None:
        """Return None: the image is read in any case."""
        del reference, login, notify
        return None

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: RegistryLogin | None,
        notify: Notify,
    ) -> tuple[ResolvedImage, ImageConfig]:
        """See the port."""
        image, config = await self._source.resolve(reference, platform, login, notify)
        owner = f"uploads/{self._uid}"
        private = not self._file.public
        return replace(image, location="", repository=owner, private=private), config

    async def prove(
        self, image: ResolvedImage, login: RegistryLogin | None, notify: Notify
    ) -> None:
        """See the port."""
        await self._source.prove(image, login, notify)

    async def blob(
        self,
        image: ResolvedImage,
        blob: Descriptor,
        login: RegistryLogin | None,
        notify: Notify,
        offset: int,
        sink: BlobSink,
    ) -> None:
        """See the port."""
        await self._source.blob(image, blob, login, notify, offset, sink)
