"""Collect the signatures of a registry's image from all places where they may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from shiftergw.errors import TimedOut
from shiftergw.model.docker_references import DockerReference
from shiftergw.model.images import Digest, ResolvedImage
from shiftergw.model.requests import RegistryLogin
from shiftergw.model.signatures import (
    SIGNATURE_SIZE_LIMIT,
    SIGNATURES_LIMIT,
    SignatureBlob,
    SignatureKind,
    SignatureStorage,
)
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.sources.registry.admission import Admission
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.options import RegistryOptions
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.retry import RegistryRetries
from shiftergw.sources.registry.simple_signatures import (
    LookasideStorage,
    SignatureExtension,
    read_lookaside_files,
)
from shiftergw.sources.registry.transport import Transport

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import Notify

_ATTACHED_KINDS: frozenset[SignatureKind] = frozenset({"cosign", "bundle"})

FILE_SECONDS = 30.0
"""The time limit for reading registries.d, or the signatures of an image on this machine."""

SLOTS = 2
"""Reads that may hang at the same time; each occupies a thread."""

_DEFAULTS = RegistryOptions()


ReadStorage = Callable[[DockerReference], SignatureStorage]
"""Returns where the signatures of an image are; blocks, and may raise `ConfigurationError`."""


class RegistryStorage(Protocol):
    """The signatures that a registry stores itself: what the client of registries offers."""

    async def signatures(
        self,
        image: ResolvedImage,
        kinds: frozenset[SignatureKind],
        login: RegistryLogin | None,
        notify: Notify,
    ) -> Sequence[SignatureBlob]:
        """Return the signatures beside an image."""
        ...

    def signature_extension(
        self, image: ResolvedImage, login: RegistryLogin | None, notify: Notify
    ) -> SignatureExtension:
        """Return the extension of the registry's interface for simple signatures."""
        ...


class Lookasides:
    """The storages of signatures that are reached over HTTP, with their connections."""

    def __init__(
        self,
        reactor: Reactor,
        proxies: Proxies,
        options: RegistryOptions = _DEFAULTS,
    ) -> None:
        """Open nothing; the arguments are those of `RegistryClient`."""
        self._reactor = reactor
        self._proxies = proxies
        self._options = options
        self._transports: dict[str, tuple[Transport, Admission]] = {}

    def open(self, url: str, notify: Notify) -> LookasideStorage:
        """Return the storage at a URL of registries.d; raise `ConfigurationError` for a bad one."""
        host, options = urlsplit(url).netloc, self._options
        if url not in self._transports:
            admission = Admission(
                host,
                options.shared_breakers,
                options.patience,
                self._reactor,
                options.random,
            )
            location = Location(host, url)
            transport = Transport(self._reactor, location, self._proxies, options.limits, admission)
            self._transports[url] = transport, admission
        transport, admission = self._transports[url]
        retries = RegistryRetries(
            options.patience, self._reactor, options.random, notify, admission.postpone
        )
        return LookasideStorage(url, transport, retries)

    async def close(self) -> None:
        """Close all idle connections."""
        for transport, _ in self._transports.values():
            await transport.close()


class RegistrySignatures:
    """The `SignatureSource` of the images of registries."""

    def __init__(
        self,
        registry: RegistryStorage,
        lookasides: Lookasides,
        read_storage: ReadStorage,
        threads: Threads,
    ) -> None:
        """Call `read_storage` for each image, in `threads`."""
        self._registry = registry
        self._lookasides = lookasides
        self._read_storage = read_storage
        self._reads = BoundedThreadCalls(threads, SLOTS, FILE_SECONDS, threads.clock, _no_answer)

    async def signatures(
        self,
        image: ResolvedImage,
        reference: DockerReference,
        kinds: frozenset[SignatureKind],
        login: RegistryLogin | None,
        notify: Notify,
    ) -> Sequence[SignatureBlob]:
        """Return the signatures of the manifest and of the index that led to it, see the port."""
        storage = await self._reads.run(self._read_storage, reference)
        signatures: list[SignatureBlob] = []
        if "simple" in kinds:
            signatures += await self._simple(image, storage.lookaside, reference, login, notify)
        if kinds & _ATTACHED_KINDS and storage.uses_attachments is not False:
            attached_kinds = kinds & _ATTACHED_KINDS
            signatures += await self._registry.signatures(image, attached_kinds, login, notify)
        small = [s for s in signatures if len(s.signature) <= SIGNATURE_SIZE_LIMIT]
        return small[:SIGNATURES_LIMIT]

    async def _simple(
        self,
        image: ResolvedImage,
        lookaside: str,
        reference: DockerReference,
        login: RegistryLogin | None,
        notify: Notify,
    ) -> list[SignatureBlob]:
        """Return simple signatures: of the registry itself if it can store them."""
        digests: Sequence[Digest] = tuple(dict.fromkeys((image.digest, image.source_digest)))
        extension = self._registry.signature_extension(image, login, notify)
        if await extension.is_supported():
            return await extension.fetch(digests)
        if not lookaside:
            return []
        path = reference.repository.partition("/")[2]
        if lookaside.startswith("file:"):
            return await self._reads.run(read_lookaside_files, lookaside, path, digests)
        return await self._lookasides.open(lookaside, notify).fetch(path, digests)


def _no_answer() -> TimedOut:
    return TimedOut(
        f"The signatures of the image were not read within {FILE_SECONDS:.0f} s.",
        remedy="Try again later; if it lasts, tell the site's support: a disk does not answer.",
    )
