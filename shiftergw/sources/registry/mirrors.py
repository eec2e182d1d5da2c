"""Get one image from the mirrors of its location, in their order, and from the location itself.

Everything that a mirror sends is verified by its digest. The location names the digest, in one HEAD
request (or GET, where HEAD tells nothing) with the user's login: that proves what a tag means now,
and that the user may read the image. HEAD costs no quota at Docker Hub. A standalone mirror is
believed about both, so it may be as stale as it likes, and its images count as public. The user's
login is never sent to a mirror. One that fails is passed over, and for a while not asked at all:
its breakers are those of registries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.errors import (
    BlobCorrupt,
    ImageNotFound,
    ManifestInvalid,
    NoMatchingPlatform,
    PullError,
    RegistryDenied,
    RegistryUnavailable,
    RegistryUntrusted,
    RetryLater,
    printable,
)
from shiftergw.model.images import Descriptor, Digest, ImageConfig, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.model.signatures import SignatureBlob, SignatureKind
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.sources.registry.documents import Documents
from shiftergw.sources.registry.mirror_places import MirrorPlace
from shiftergw.sources.registry.options import OnMirrorFailure, ignore_failure
from shiftergw.sources.registry.registries import Registry
from shiftergw.sources.registry.repository import Repository
from shiftergw.sources.registry.simple_signatures import SignatureExtension
from shiftergw.sources.registry.verifying_sink import VerifyingSink
from shiftergw.sources.selection import choose_image

if TYPE_CHECKING:
    from shiftergw.ports import BlobSink, Notify

_log = Logger()

_MIRROR_FAILURES = (
    BlobCorrupt,
    ImageNotFound,
    ManifestInvalid,
    NoMatchingPlatform,
    RegistryDenied,
    RegistryUnavailable,
    RegistryUntrusted,
    RetryLater,
)
"""What lets the next place be asked; errors of this machine, such as a full disk, do not."""


@dataclass(slots=True)
class _Grant:
    """What the location says of a reference: its digest, and whether the login was needed."""

    digest: Digest
    private: bool


class ImageRoute:
    """The places of one repository, for one user."""

    def __init__(
        self,
        origin: Registry,
        mirrors: Sequence[MirrorPlace],
        repository: str,
        login: RegistryLogin | None,
        notify: Notify,
        on_failure: OnMirrorFailure = ignore_failure,
    ) -> None:
        """Visit `repository` with `login`; `origin` is the location itself."""
        self._on_failure = on_failure
        self._origin = origin
        self._mirrors = mirrors
        self._name = repository
        self._login = login
        self._notify = notify
        self._repository = origin.repository(repository, login)
        self._documents = origin.documents(self._repository, notify)

    def _mirrors_for(self, reference: ImageReference) -> list[MirrorPlace]:
        by_digest = reference.digest is not None
        return [place for place in self._mirrors if place.mirror.has(by_digest=by_digest)]

    def _documents_at(self, place: MirrorPlace) -> Documents:
        return place.registry.documents(
            place.registry.repository(self._name, place.login), self._notify
        )

    async def head(self, reference: ImageReference) -> Digest | None:
        """Return the digest that a reference means now; None if the location does not tell."""
        for place in self._mirrors_for(reference):
            if not place.mirror.standalone:
                break
            try:
                digest = await self._documents_at(place).head(_selector(reference))
            except _MIRROR_FAILURES as error:
                self._pass_over(place, error)
                continue
            if digest is not None:
                return digest
        return await self._documents.head(_selector(reference))

    async def resolve(
        self, reference: ImageReference, platform: Platform
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return the image, from the first place that has it.

        Raises the error of the location if no place has it, or the location refuses it.
        """
        grant: _Grant | PullError | None = None
        for place in self._mirrors_for(reference):
            digest, private = reference.digest, False
            if not place.mirror.standalone:
                grant = grant or await self._ask_origin(reference)
                if isinstance(grant, PullError):
                    continue
                digest, private = grant.digest, grant.private
            try:
                answer = await self._resolve_at(place, reference, digest, platform)
            except _MIRROR_FAILURES as error:
                self._pass_over(place, error)
                continue
            return await self._accept(place, *answer, private=private)
        if isinstance(grant, PullError):
            raise grant
        selector = _selector(reference)
        return await self._read(self._documents, selector, reference.digest, platform)

    async def _ask_origin(self, reference: ImageReference) -> _Grant | PullError:
        """Return what the location says of a reference, or its error."""
        selector = _selector(reference)
        try:
            digest = await self._documents.head(selector)
            if digest is None:  # some registries refuse HEAD, or name no digest
                content, _ = await self._documents.manifest(selector, reference.digest)
                digest = Digest.of(content)
        except PullError as error:
            return error
        return _Grant(reference.digest or digest, self._repository.private)

    async def _resolve_at(
        self,
        place: MirrorPlace,
        reference: ImageReference,
        digest: Digest | None,
        platform: Platform,
    ) -> tuple[ResolvedImage, ImageConfig]:
        selector = reference.tag if digest is None else str(digest)
        self._notify(f"Getting the image from the mirror {place.name}")
        return await self._read(self._documents_at(place), selector, digest, platform)

    async def _accept(
        self, place: MirrorPlace, image: ResolvedImage, config: ImageConfig, *, private: bool
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return the image of a mirror, after the user's access to a private one is proven.

        A manifest may name layers of a repository that its reader may not read: the location itself
        must show each of them.
        """
        image = replace(image, mirror=place.name, private=private)
        if private:
            await gather_or_cancel(map(self._documents.prove, set(image.layers)))
        _log.info(
            "{location}/{repository}: {digest} comes from the mirror {mirror}",
            location=image.location,
            repository=image.repository,
            digest=str(image.source_digest),
            mirror=place.name,
        )
        return image, config

    async def _read(
        self, documents: Documents, selector: str, digest: Digest | None, platform: Platform
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return the image of a tag or digest at one place, by the names of the location."""
        content, media_type = await documents.manifest(selector, digest)
        choice = await choose_image(documents, content, media_type, platform)
        image = ResolvedImage(
            digest=choice.digest,
            source_digest=digest or Digest.of(content),
            config_blob=choice.manifest.config,
            layers=choice.manifest.layers,
            location=self._origin.location.name,
            repository=self._name,
            private=documents.repository.private,
        )
        return image, choice.config

    def _places_of(self, image: ResolvedImage) -> Sequence[MirrorPlace]:
        """Return the mirror that served the manifest of an image, and those after it."""
        names = [place.name for place in self._mirrors]
        return self._mirrors[names.index(image.mirror) :] if image.mirror in names else ()

    async def prove(self, image: ResolvedImage) -> None:
        """Return if the login may read every layer; a standalone mirror is asked if it served it.

        The configuration was read when the image was resolved.
        """
        for place in self._places_of(image)[:1]:
            if place.mirror.standalone and not image.private:
                documents = self._documents_at(place)
                try:
                    await gather_or_cancel(map(documents.prove, set(image.layers)))
                except _MIRROR_FAILURES as error:
                    self._pass_over(place, error)
                else:
                    return
        documents = self._origin.documents(self._origin_repository(image), self._notify)
        await gather_or_cancel(map(documents.prove, set(image.layers)))

    async def signatures(
        self, image: ResolvedImage, kinds: frozenset[SignatureKind]
    ) -> list[SignatureBlob]:
        """Return the signatures beside an image, at the place that decided what its tag means."""
        digests = dict.fromkeys((image.digest, image.source_digest))
        for place in self._places_of(image)[:1]:
            if place.mirror.standalone:
                repository = place.registry.repository(self._name, place.login)
                try:
                    attachments = place.registry.attachments(repository, self._notify)
                    return await attachments.fetch(digests, kinds)
                except _MIRROR_FAILURES as error:
                    self._pass_over(place, error)
        attachments = self._origin.attachments(self._origin_repository(image), self._notify)
        return await attachments.fetch(digests, kinds)

    def signature_extension(self, image: ResolvedImage) -> SignatureExtension:
        """Return the extension for simple signatures, at the place of `signatures`."""
        for place in self._places_of(image)[:1]:
            if place.mirror.standalone:
                registry, login = place.registry, place.login
                return registry.signature_extension(self._name, login, self._notify, private=False)
        return self._origin.signature_extension(
            self._name, self._login, self._notify, private=image.private
        )

    def _origin_repository(self, image: ResolvedImage) -> Repository:
        """Return the repository at the location itself, read as the image was resolved."""
        return self._origin.repository(self._name, self._login, private=image.private)

    async def download(
        self, image: ResolvedImage, blob: Descriptor, offset: int, sink: BlobSink
    ) -> None:
        """Stream a blob into `sink`, going on at the next place with what has arrived.

        Returns when the sink has as many bytes as the descriptor says. Bytes of a mirror that are
        wrong are dropped; those of the location are the sink's to check.
        """
        places = self._places_of(image)
        if places:
            verifier = VerifyingSink(sink, blob)
            for place in places:
                repository = place.registry.repository(self._name, place.login)
                try:
                    await place.registry.download(repository, blob, offset, verifier, self._notify)
                    verifier.check()
                except _MIRROR_FAILURES as error:
                    self._pass_over(place, error)
                    offset = 0 if isinstance(error, BlobCorrupt) else verifier.position
                else:
                    return
        repository = self._origin_repository(image)
        await self._origin.download(repository, blob, offset, sink, self._notify)

    def _pass_over(self, place: MirrorPlace, error: PullError) -> None:
        cause = printable(f"{error.what} {error.detail}".strip(), 300)
        self._on_failure(place.name, cause)
        self._notify(f"Passing over the mirror {place.name}")
        _log.warn(
            "{location}/{repository}: the mirror {mirror} is passed over: {cause}",
            location=self._origin.location.name,
            repository=self._name,
            mirror=place.name,
            cause=cause,
        )


def _selector(reference: ImageReference) -> str:
    return str(reference.digest) if reference.digest else reference.tag
