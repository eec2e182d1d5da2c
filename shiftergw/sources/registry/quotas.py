"""Spend the requests that a registry counts sparingly.

Registries such as Docker Hub count each GET of a manifest, by login or by address, and no HEAD. So
this process remembers what they tell of the limits, and the manifests that it has read lately. The
processes of a machine share public ones.
While a registry counts requests, HEAD shows whether such a manifest is still the right one.
"""

from __future__ import annotations

from collections import OrderedDict

from twisted.logger import Logger

from shiftergw.model.images import Digest
from shiftergw.model.metrics import REQUESTS_LEFT
from shiftergw.model.requests import RegistryLogin
from shiftergw.oci.rate_limits import RateLimit
from shiftergw.ports import NO_METRICS, Metrics
from shiftergw.sources.registry.shared_manifests import RecentManifest, SharedManifests

MOST_LOGINS = 256
"""Logins whose limits are remembered."""

MOST_BYTES = 1 << 20
"""Bytes of all remembered manifests of one registry together."""

_log = Logger()


class Quotas:
    """The limits of one registry, and its recent manifests."""

    def __init__(
        self,
        location: str,
        files: SharedManifests | None = None,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        """Start without knowledge of the registry; `location` names it in the log.

        `files` has the manifests that other processes have read, if there are any.
        """
        self._location = location
        self._metrics = metrics
        self._files = files
        self._may_share: bool | None = None
        self._limits: OrderedDict[RegistryLogin | None, RateLimit] = OrderedDict()
        self._manifests: OrderedDict[tuple[str, str], RecentManifest] = OrderedDict()
        self._bytes = 0

    def note(self, login: RegistryLogin | None, limit: RateLimit | None) -> None:
        """Remember a limit on the requests with a login, or without one; log that it gets low."""
        if limit is None:
            return
        if login is None:
            self._metrics.set(REQUESTS_LEFT, limit.remaining, self._location)
        earlier = self._limits.pop(login, None)
        self._limits[login] = limit
        if len(self._limits) > MOST_LOGINS:
            self._limits.popitem(last=False)
        if limit.is_low and (earlier is None or not earlier.is_low):
            _log.warn(
                "{location} limits requests {subject}: {limit}",
                location=self._location,
                subject="without a login" if login is None else "of a login",
                limit=str(limit),
            )

    def limit_of(self, login: RegistryLogin | None) -> RateLimit | None:
        """Return the last limit that the registry reported on the requests with this login."""
        return self._limits.get(login)

    async def has_shared(self) -> bool:
        """Return whether processes of this machine share manifests of this registry."""
        if self._files is None:
            return False
        if self._may_share is None:
            self._may_share = await self._files.exist()
        return self._may_share or bool(self._limits)

    async def read_file(self, digest: Digest) -> RecentManifest | None:
        """Return a manifest that any process of this machine has read; see `recent`."""
        return None if self._files is None else await self._files.read(digest)

    async def share(self, manifest: RecentManifest) -> None:
        """Let other processes of this machine have a public manifest of a registry that counts."""
        if self._files is not None and self._limits:
            await self._files.write(manifest)

    def remember(self, repository: str, reference: str, manifest: RecentManifest) -> None:
        """Remember a manifest by the tag or digest under which it was read.

        That is of use only while the registry counts requests.
        """
        if not self._limits or len(manifest.content) > MOST_BYTES:
            return
        self._forget((repository, reference))
        self._manifests[repository, reference] = manifest
        self._bytes += len(manifest.content)
        while self._bytes > MOST_BYTES:
            self._forget(next(iter(self._manifests)))

    def recent(self, repository: str, reference: str) -> RecentManifest | None:
        """Return what was read by this tag or digest last, if it is remembered.

        The caller must prove by HEAD that it still is what the reference means, and that the user
        may read it.
        """
        manifest = self._manifests.get((repository, reference))
        if manifest is not None:
            self._manifests.move_to_end((repository, reference))
        return manifest

    def _forget(self, key: tuple[str, str]) -> None:
        manifest = self._manifests.pop(key, None)
        if manifest is not None:
            self._bytes -= len(manifest.content)
