"""Pulls images from registries: OCI distribution-spec v1.1, "Pull"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import random as system_random
from typing import TYPE_CHECKING

from twisted.internet.defer import DeferredSemaphore

from shiftergw.errors import ImageNotFound
from shiftergw.image import Descriptor, Digest, ImageConfig, Platform, ResolvedImage
from shiftergw.model import ImageReference, RegistryLogin
from shiftergw.model.signatures import SignatureBlob, SignatureKind
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.sources.registry.admission import Admission, Shared
from shiftergw.sources.registry.attachments import Attachments
from shiftergw.sources.registry.documents import Documents, Retries
from shiftergw.sources.registry.download import Download
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.repository import Repository
from shiftergw.sources.registry.retry import Patience, with_retries
from shiftergw.sources.registry.simple_signatures import SignatureExtension
from shiftergw.sources.registry.tokens import Tokens
from shiftergw.sources.registry.transport import Transport
from shiftergw.sources.selection import choose_image

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.ports import BlobSink, Say

PARALLEL_BLOBS = 6
"""Blobs that are downloaded at once by one client."""

Locate = Callable[[ImageReference], tuple[str, str]]
"""Splits the name of a reference into that of a location and a repository there."""

_LIMITS, _PATIENCE, _NOT_SHARED = Limits(), Patience(), Shared()


class _Registry:
    """A location with what we keep of it between requests."""

    def __init__(
        self,
        reactor: Reactor,
        location: Location,
        proxies: Proxies,
        limits: Limits,
        admission: Admission,
    ) -> None:
        self.transport = Transport(reactor, location, proxies, limits, admission)
        self.location = location
        self.admission = admission
        self._tokens = Tokens(self.transport, reactor)

    def repository(
        self, name: str, login: RegistryLogin | None, *, private: bool = False, below: str = ""
    ) -> Repository:
        return Repository(
            self.transport,
            self._tokens,
            self.location.base + below,
            name,
            login,
            self.admission,
            private=private,
        )


class RegistryClient:
    """The `ImageSource` over the registries of the configuration."""

    def __init__(
        self,
        reactor: Reactor,
        locations: Mapping[str, Location],
        locate: Locate,
        environment: Mapping[str, str],
        *,
        shared: Shared = _NOT_SHARED,
        limits: Limits = _LIMITS,
        patience: Patience = _PATIENCE,
        random: Callable[[], float] = system_random,
        proxied_hosts: tuple[str, ...] | None = None,
    ) -> None:
        """Open nothing; `environment` names the proxies. Raises `ConfigurationError`.

        `shared` has the breakers that all processes of the site use.
        """
        proxies = Proxies(environment, proxied_hosts)
        self._clock = reactor
        self._locate = locate
        self._patience = patience
        self._random = random
        self._blobs = DeferredSemaphore(PARALLEL_BLOBS)
        self._registries = {
            name: _Registry(
                reactor,
                location,
                proxies,
                limits,
                Admission(name, shared, patience, reactor, random),
            )
            for name, location in locations.items()
        }

    async def close(self) -> None:
        """Close all idle connections."""
        for registry in self._registries.values():
            await registry.transport.close()

    async def head(
        self, reference: ImageReference, login: RegistryLogin | None, say: Say
    ) -> Digest | None:
        """Return the digest that the reference answers now; None if the registry does not tell."""
        _, documents = self._visit(reference, login, say)
        return await documents.head(_wanted(reference))

    async def resolve(
        self, reference: ImageReference, platform: Platform, login: RegistryLogin | None, say: Say
    ) -> tuple[ResolvedImage, ImageConfig]:
        """Return what the reference means now for this platform, and its configuration.

        A digest in the reference wins over its tag and is checked. Of an index the candidates are
        tried, best first, until one is an image with layers.
        """
        location, documents = self._visit(reference, login, say)
        content, media_type = await documents.manifest(_wanted(reference), reference.digest)
        image = await choose_image(documents, content, media_type, platform)
        repository = documents.repository
        resolved = ResolvedImage(
            digest=image.digest,
            source_digest=reference.digest or Digest.of(content),
            config_blob=image.manifest.config,
            layers=image.manifest.layers,
            location=location,
            repository=repository.name,
            private=repository.private,
        )
        return resolved, image.config

    async def prove(self, image: ResolvedImage, login: RegistryLogin | None, say: Say) -> None:
        """Return if this login may read every layer of a resolved image, in one request for each.

        Its configuration was read when it was resolved.
        """
        repository = self._repository(image, login)
        documents = self._documents(image.location, repository, say)
        await gather_or_cancel(documents.prove(layer) for layer in set(image.layers))

    async def blob(
        self,
        image: ResolvedImage,
        blob: Descriptor,
        login: RegistryLogin | None,
        say: Say,
        offset: int,
        sink: BlobSink,
    ) -> None:
        """Stream a blob of a resolved image into `sink`, resuming it after interruptions.

        Returns when the sink has as many bytes as the descriptor says; their digest is the
        sink's to check.
        """
        registry = self._registry(image.location)
        later = registry.admission.later
        download = Download(registry.transport, self._repository(image, login), blob, offset, sink)

        async def attempt() -> None:
            async with self._blobs:
                await download.attempt()

        await with_retries(
            attempt,
            patience=self._patience,
            clock=self._clock,
            random=self._random,
            say=say,
            later=later,
            progress=lambda: download.progress,
        )

    async def signatures(
        self,
        image: ResolvedImage,
        kinds: frozenset[SignatureKind],
        login: RegistryLogin | None,
        say: Say,
    ) -> list[SignatureBlob]:
        """Return the signatures that the registry stores beside an image; see `SignatureSource`.

        Those of the index that led to the manifest are among them: it names the manifest's digest.
        """
        registry = self._registry(image.location)
        attachments = Attachments(
            registry.transport, self._repository(image, login), self._retries(registry, say)
        )
        return await attachments.fetch(dict.fromkeys((image.digest, image.source_digest)), kinds)

    def signature_extension(
        self, image: ResolvedImage, login: RegistryLogin | None, say: Say
    ) -> SignatureExtension:
        """Return the registry's extension for simple signatures of an image."""
        registry = self._registry(image.location)
        repository = registry.repository(
            image.repository,
            login if image.private else None,
            private=image.private,
            below="/extensions",
        )
        retries = self._retries(registry, say)
        return SignatureExtension(registry.transport, registry.location.base, repository, retries)

    def _repository(self, image: ResolvedImage, login: RegistryLogin | None) -> Repository:
        """Return where the blobs of an image are.

        What was resolved without a login counts as public: its blobs must come without one too.
        """
        return self._registry(image.location).repository(
            image.repository, login if image.private else None, private=image.private
        )

    def _registry(self, location: str) -> _Registry:
        try:
            return self._registries[location]
        except KeyError:
            raise ImageNotFound(
                f"The gateway knows no registry {location!r}.",
                remedy="Ask the site's support which registries there are.",
            ) from None

    def _visit(
        self, reference: ImageReference, login: RegistryLogin | None, say: Say
    ) -> tuple[str, Documents]:
        location, name = self._locate(reference)
        registry = self._registry(location)
        if registry.location.is_docker_hub and "/" not in name:
            name = f"library/{name}"
        return location, self._documents(location, registry.repository(name, login), say)

    def _documents(self, location: str, repository: Repository, say: Say) -> Documents:
        registry = self._registry(location)
        return Documents(registry.transport, repository, self._retries(registry, say))

    def _retries(self, registry: _Registry, say: Say) -> Retries:
        return lambda attempt: with_retries(
            attempt,
            patience=self._patience,
            clock=self._clock,
            random=self._random,
            say=say,
            later=registry.admission.later,
        )


def _wanted(reference: ImageReference) -> str:
    return str(reference.digest) if reference.digest else reference.tag
