"""The registries and mirrors of a process: their connections, tokens and breakers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from twisted.internet.defer import DeferredSemaphore

from shiftergw.model.images import Descriptor
from shiftergw.model.requests import RegistryLogin
from shiftergw.oci.rate_limits import RateLimit
from shiftergw.sources.registry.admission import Admission
from shiftergw.sources.registry.attachments import Attachments
from shiftergw.sources.registry.documents import Documents
from shiftergw.sources.registry.download import Download
from shiftergw.sources.registry.local_files import LocationTls
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.options import RegistryOptions
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.quotas import Quotas
from shiftergw.sources.registry.registry_root import RegistryRoot
from shiftergw.sources.registry.repository import Repository
from shiftergw.sources.registry.retry import RegistryRetries
from shiftergw.sources.registry.simple_signatures import SignatureExtension
from shiftergw.sources.registry.tokens import Tokens
from shiftergw.sources.registry.transport import Transport

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.ports import BlobSink, Notify

PARALLEL_BLOBS = 6
"""Blobs that are downloaded at once by one client."""

MOST_REGISTRIES = 64
"""Registries without a location of their own that keep connections; the oldest is closed first."""


class Registry:
    """A location, or a mirror, with what is kept of it between requests."""

    def __init__(
        self,
        reactor: Reactor,
        location: Location,
        transport: Transport,
        admission: Admission,
        options: RegistryOptions,
        blobs: DeferredSemaphore,
        quotas: Quotas,
    ) -> None:
        """Keep the parts; `blobs` limits how many blobs are downloaded at once."""
        self.location = location
        self.transport = transport
        self._admission = admission
        self._tokens = Tokens(transport, reactor)
        self._quotas = quotas
        self._clock = reactor
        self._options = options
        self._blobs = blobs

    def repository(
        self, name: str, login: RegistryLogin | None, *, private: bool = False, below: str = ""
    ) -> Repository:
        """Return the repository with this name in references; see `Location.path_of`.

        `below` is a path in front of that of the API.
        """
        return Repository(
            self.transport,
            self._tokens,
            self.location.base + below,
            self.location.path_of(name),
            login,
            self._admission,
            self._quotas,
            private=private,
        )

    def root(self, login: RegistryLogin) -> RegistryRoot:
        """Return the root of the API, for one try of a login; nothing of it is kept."""
        return RegistryRoot(
            self.transport,
            Tokens(self.transport, self._clock),
            self.location.base,
            login,
            self._admission,
            Quotas(self.location.name),
        )

    def limit_of(self, login: RegistryLogin | None) -> RateLimit | None:
        """Return the limit on the requests with this login, if the registry has reported one."""
        return self._quotas.limit_of(login)

    def documents(self, repository: Repository, notify: Notify) -> Documents:
        """Return the manifests and configurations of a repository, for one reference."""
        return Documents(self.transport, repository, self._retries(notify))

    def attachments(self, repository: Repository, notify: Notify) -> Attachments:
        """Return the signatures beside the images of a repository."""
        return Attachments(self.transport, repository, self._retries(notify))

    def signature_extension(
        self, name: str, login: RegistryLogin | None, notify: Notify, *, private: bool
    ) -> SignatureExtension:
        """Return the extension for simple signatures of the images of a repository."""
        repository = self.repository(name, login, private=private, below="/extensions")
        return SignatureExtension(
            self.transport, self.location.base, repository, self._retries(notify)
        )

    def _retries(self, notify: Notify) -> RegistryRetries:
        options = self._options
        return RegistryRetries(
            options.patience, self._clock, options.random, notify, self._admission.postpone
        )

    async def download(
        self, repository: Repository, blob: Descriptor, offset: int, sink: BlobSink, notify: Notify
    ) -> None:
        """Stream a blob into `sink` from `offset`, resuming it after interruptions."""
        download = Download(self.transport, repository, blob, offset, sink)

        async def attempt() -> None:
            async with self._blobs:
                await download.attempt()

        await self._retries(notify).run(attempt, lambda: download.progress)


class Registries:
    """Opens registries, and closes them."""

    def __init__(self, reactor: Reactor, proxies: Proxies, options: RegistryOptions) -> None:
        """Open nothing; see `RegistryClient`."""
        self._reactor = reactor
        self._proxies = proxies
        self._options = options
        # The next place is a better answer to a failing mirror than another try.
        self._mirror_options = replace(options, patience=replace(options.patience, tries=2))
        self._blobs = DeferredSemaphore(PARALLEL_BLOBS)
        self._tls: dict[object, LocationTls] = {}
        self._permanent: dict[Location, Registry] = {}
        self._recent: OrderedDict[Location, Registry] = OrderedDict()

    def add(self, location: Location) -> None:
        """Open a location of the configuration and its mirrors; raise `ConfigurationError`."""
        for place in (location, *(mirror.location for mirror in location.mirrors)):
            if place not in self._permanent:
                self._permanent[place] = self._open(place)

    def read_files(self, location: Location) -> None:
        """Read the files of locations that are opened later; raise `ConfigurationError`."""
        self._tls_of(location)

    def _tls_of(self, location: Location) -> LocationTls:
        """Return the TLS of a location; files that another location has read are not read again."""
        files = (
            location.cacert,
            location.client_certificate,
            location.client_key,
            location.least_tls,
        )
        if files not in self._tls:
            self._tls[files] = LocationTls.of(location)
        return self._tls[files]

    def at(self, location: Location) -> Registry:
        """Return the registry of a location, which is opened if it is not a configured one."""
        registry = self._permanent.get(location) or self._recent.pop(location, None)
        if registry is None:
            registry = self._open(location)
        if location not in self._permanent:
            self._recent[location] = registry
            if len(self._recent) > MOST_REGISTRIES:
                _, oldest = self._recent.popitem(last=False)
                oldest.transport.close()
        return registry

    def _open(self, location: Location) -> Registry:
        options = self._mirror_options if location.is_mirror else self._options
        admission = Admission(
            location.name,
            options.shared_breakers,
            options.patience,
            self._reactor,
            options.random,
        )
        transport = Transport(
            self._reactor,
            location,
            self._proxies,
            options.limits,
            admission,
            self._tls_of(location),
        )
        share = options.share_manifests
        files = None if share is None else share(location.name)
        quotas = Quotas(location.name, files, options.metrics)
        return Registry(
            self._reactor,
            location,
            transport,
            admission,
            options,
            self._blobs,
            quotas,
        )

    async def close(self) -> None:
        """Close all idle connections."""
        for registry in (*self._permanent.values(), *self._recent.values()):
            await registry.transport.close()
