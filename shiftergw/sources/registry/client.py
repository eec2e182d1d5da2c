"""Pulls images from registries: OCI distribution-spec v1.1, "Pull"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shiftergw.model.explanations import ImagePlace
from shiftergw.model.images import Descriptor, Digest, ImageConfig, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.model.signatures import SignatureBlob, SignatureKind
from shiftergw.sources.registry.mirror_places import MirrorPlace, open_mirrors
from shiftergw.sources.registry.mirrors import ImageRoute
from shiftergw.sources.registry.names import RegistryNames
from shiftergw.sources.registry.options import RegistryOptions
from shiftergw.sources.registry.places import describe_places
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.registries import PARALLEL_BLOBS, Registries, Registry
from shiftergw.sources.registry.simple_signatures import SignatureExtension

__all__ = ["PARALLEL_BLOBS", "RegistryClient"]

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.ports import BlobSink, Notify

_DEFAULTS = RegistryOptions()


class RegistryClient:
    """The `ImageSource` over the registries of the configuration."""

    def __init__(
        self,
        reactor: Reactor,
        names: RegistryNames,
        proxies: Proxies,
        options: RegistryOptions = _DEFAULTS,
    ) -> None:
        """Open no connection; read the files of the locations, or raise `ConfigurationError`."""
        self._names = names
        self._proxies = proxies
        self._on_mirror_failure = options.on_mirror_failure
        self._registries = Registries(reactor, proxies, options)
        for location in names.examples:
            self._registries.read_files(location)
        self._mirrors: dict[str, tuple[MirrorPlace, ...]] = {}
        for name, location in names.locations.items():
            self._registries.add(location)
            self._mirrors[name] = open_mirrors(self._registries, location)

    async def close(self) -> None:
        """Close all idle connections."""
        await self._registries.close()

    def places(
        self, reference: ImageReference, login: RegistryLogin | None
    ) -> tuple[ImagePlace, ...]:
        """Return where a reference is looked for, in this order; nothing is requested."""
        origin, mirrors, repository = self._open(*self._names.locate(reference))
        by_digest = reference.digest is not None
        mirrors = tuple(place for place in mirrors if place.mirror.has(by_digest=by_digest))
        return tuple(describe_places(origin, mirrors, repository, login, self._proxies))

    async def check_login(self, location: str, login: RegistryLogin) -> bool:
        """Try a login at the registry of a location, and at none of its mirrors.

        See `LoginChecker`.
        """
        registry = self._registries.at(self._names.location(location, ""))
        return await registry.root(login).check_login()

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, notify: Notify
    ) -> Digest | None:
        """Return the digest that the reference answers now; None if the registry does not tell."""
        return await self._route(*self._names.locate(reference), login, notify).head(reference)

    async def resolve(
        self,
        reference: ImageReference,
        platform: Platform,
        login: RegistryLogin | None,
        notify: Notify,
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return what the reference means now for this platform, and its configuration.

        A digest in the reference wins over its tag and is checked. Of an index the candidates are
        tried, best first, until one is an image with layers.
        """
        route = self._route(*self._names.locate(reference), login, notify)
        return await route.resolve(reference, platform)

    async def prove(
        self, image: ResolvedImage, login: RegistryLogin | None, notify: Notify
    ) -> None:
        """Return if this login may read every layer of a resolved image, in one request for each.

        Its configuration was read when it was resolved.
        """
        await self._route_of(image, login, notify).prove(image)

    async def blob(
        self,
        image: ResolvedImage,
        blob: Descriptor,
        login: RegistryLogin | None,
        notify: Notify,
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Stream a blob of a resolved image into `sink`, resuming it after interruptions.

        Returns when the sink has as many bytes as the descriptor says; their digest is the
        sink's to check.
        """
        await self._route_of(image, login, notify).download(image, blob, offset, sink)

    async def signatures(
        self,
        image: ResolvedImage,
        kinds: frozenset[SignatureKind],
        login: RegistryLogin | None,
        notify: Notify,
    ) -> list[SignatureBlob]:
        """Return the signatures that the registry stores beside an image; see `SignatureSource`.

        Those of the index that led to the manifest are among them: it names the manifest's digest.
        """
        return await self._route_of(image, login, notify).signatures(image, kinds)

    def signature_extension(
        self, image: ResolvedImage, login: RegistryLogin | None, notify: Notify
    ) -> SignatureExtension:
        """Return the registry's extension for simple signatures of an image."""
        return self._route_of(image, login, notify).signature_extension(image)

    def _route_of(
        self, image: ResolvedImage, login: RegistryLogin | None, notify: Notify
    ) -> ImageRoute:
        """Return where the blobs of an image are.

        What was resolved without a login counts as public: its blobs must come without one too.
        """
        return self._route(
            image.location, image.repository, login if image.private else None, notify
        )

    def _route(
        self, name: str, repository: str, login: RegistryLogin | None, notify: Notify
    ) -> ImageRoute:
        places = self._open(name, repository)
        return ImageRoute(*places, login, notify, self._on_mirror_failure)

    def _open(self, name: str, repository: str) -> tuple[Registry, tuple[MirrorPlace, ...], str]:
        """Return a location, its mirrors, and the name of a repository there."""
        location = self._names.location(name, repository)
        if location.is_docker_hub and "/" not in repository:
            repository = f"library/{repository}"
        mirrors = self._mirrors.get(name)
        if mirrors is None:
            mirrors = open_mirrors(self._registries, location)
        return self._registries.at(location), mirrors, repository
