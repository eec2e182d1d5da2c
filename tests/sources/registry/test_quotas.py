"""Requests that a registry counts are rare, and its limits are reported."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import pytest_twisted
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from shiftergw.app.metric_counts import MetricCounts
from shiftergw.errors import RetryLater
from shiftergw.model.images import Digest, Platform
from shiftergw.model.metrics import REQUESTS_LEFT
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.oci.rate_limits import RateLimit
from shiftergw.plumbing.threads import Threads
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.quotas import MOST_BYTES, MOST_LOGINS, Quotas
from shiftergw.sources.registry.retry import Patience
from shiftergw.sources.registry.shared_manifests import RecentManifest, SharedManifests
from tests.images import INDEX, make_image, make_index, tar_of
from tests.sources.registry.faulty import ALICE, FaultySite, Reply, Request
from tests.sources.registry.network import open_client

IMAGE, NEXT_IMAGE = (make_image([tar_of({name: b"x"})]) for name in "ab")
PATIENCE = Patience(first=0.005, quick=0.5)
WINDOW = 21600


class CountingSite(FaultySite):
    """A site that limits GETs of manifests in six hours; it reports the limit as Docker Hub."""

    def __init__(self, allowance: int | None) -> None:
        """Serve an index; with None requests are not counted, and no limit is reported."""
        super().__init__(IMAGE, NEXT_IMAGE, script=self._count)
        self.allowance = allowance
        self.count = 0
        self.add(make_index([IMAGE]), INDEX, "latest")

    def _count(self, request: Request) -> Reply | None:
        if self.allowance is None or request.kind not in {"manifest", "child"}:
            return None
        self.count += request.method == "GET"
        fields = {
            "RateLimit-Limit": f"{self.allowance};w={WINDOW}",
            "RateLimit-Remaining": f"{max(0, self.allowance - self.count)};w={WINDOW}",
        }
        if self.count > self.allowance:
            return Reply(429, b'{"errors":[{"message":"too many"}]}', fields)
        reply = self.respond_well(request)
        return Reply(reply.status, reply.body, {**reply.fields, **fields})


async def resolve(client: RegistryClient, login: RegistryLogin | None = None) -> Digest:
    """Return the digest of the image."""
    reference = ImageReference.parse("team/app")
    return (await client.resolve(reference, Platform(), login, lambda _: None))[0].digest


@pytest_twisted.ensureDeferred
async def test_forty_pulls_of_a_moving_tag() -> None:
    """Forty pulls request only new manifests, and each gets the current image of the tag."""
    site = CountingSite(10)
    async with site.running() as url, open_client(url, patience=PATIENCE) as client:
        for _ in range(20):
            assert await resolve(client) == IMAGE.digest
        assert site.count == 2
        site.add(make_index([NEXT_IMAGE]), INDEX, "latest")
        for _ in range(20):
            assert await resolve(client) == NEXT_IMAGE.digest
    assert site.count == 4
    assert site.lines[:6] == [
        *("GET manifest", "GET child", "GET blob"),
        *("HEAD manifest", "HEAD child", "GET blob"),
    ]


@pytest_twisted.ensureDeferred
async def test_a_registry_that_counts_nothing() -> None:
    """Each manifest of a registry without limits is requested, without a HEAD before it."""
    site = CountingSite(None)
    async with site.running() as url, open_client(url, patience=PATIENCE) as client:
        for _ in range(2):
            await resolve(client)
    assert site.lines == ["GET manifest", "GET child", "GET blob"] * 2


@pytest_twisted.ensureDeferred
async def test_a_remembered_manifest_is_for_its_readers() -> None:
    """A user who may not read a manifest gets an error, although the process remembers it."""
    site = CountingSite(10)
    site.access = "basic"
    public_reply = site.script

    def script(request: Request) -> Reply | None:
        return public_reply(request) if request.caller == "alice" else None

    site.script = script
    async with site.running() as url, open_client(url, patience=PATIENCE) as client:
        for _ in range(2):
            assert await resolve(client, ALICE) == IMAGE.digest
        assert site.count == 2
        with pytest.raises(Exception, match="without a login"):
            await resolve(client)
    assert site.count == 2


@pytest.fixture
def share(tmp_path: Path, threads: Threads) -> Callable[[str], SharedManifests]:
    """Return a function that opens the shared manifests of a machine."""
    return partial(SharedManifests, tmp_path, threads=threads)


@pytest_twisted.ensureDeferred
async def test_processes_share_manifests(share: Callable[[str], SharedManifests]) -> None:
    """A manifest that one process has read costs another process no request, even its first."""
    site = CountingSite(2)
    async with site.running() as url:
        for _ in range(2):
            async with open_client(url, patience=PATIENCE, share_manifests=share) as client:
                assert await resolve(client) == IMAGE.digest
    assert site.lines.count("GET manifest") == 1
    assert site.count == 2


@pytest_twisted.ensureDeferred
async def test_private_manifests_are_not_shared(
    share: Callable[[str], SharedManifests], tmp_path: Path
) -> None:
    """A manifest that needs a login stays in the memory of the process."""
    site = CountingSite(10)
    public_reply = site.script
    site.access = "basic"
    site.script = lambda request: public_reply(request) if request.caller == "alice" else None
    async with (
        site.running() as url,
        open_client(url, patience=PATIENCE, share_manifests=share) as client,
    ):
        assert await resolve(client, ALICE) == IMAGE.digest
    assert site.count == 2
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest_twisted.ensureDeferred
async def test_the_limit_is_reported() -> None:
    """A pull that must wait reports the limit; the log reports once that few requests remain."""
    events: list[LogEvent] = []
    site = CountingSite(1)

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        events.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        async with site.running() as url, open_client(url, patience=PATIENCE) as client:
            with pytest.raises(RetryLater) as caught:
                await resolve(client)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert "too many; 0 of 1 requests in 6 hours are left" in caught.value.what
    warnings = [str(event["limit"]) for event in events if "limits requests" in str(event)]
    assert warnings == ["0 of 1 requests in 6 hours are left"]


@pytest_twisted.ensureDeferred
async def test_the_reset_is_waited_for() -> None:
    """Without `Retry-After` the wait ends when the limit is reset."""
    fields = {"RateLimit-Remaining": "0", "RateLimit-Reset": "3000"}
    site = FaultySite(IMAGE, script=lambda _: Reply(429, fields=fields))
    async with site.running() as url, open_client(url, patience=PATIENCE) as client:
        with pytest.raises(RetryLater) as caught:
            await resolve(client)
    assert caught.value.registry == "test"
    assert len(site.requests) == 1


def test_the_anonymous_limit_is_a_metric() -> None:
    """What is left without a login is measured; limits of users' logins are theirs."""
    counts = MetricCounts()
    quotas = Quotas("docker.io", metrics=counts)
    quotas.note(None, RateLimit(76, 100))
    quotas.note(RegistryLogin("ann", ""), RateLimit(5, 10))
    assert list(counts.entries()) == [[REQUESTS_LEFT.name, ["docker.io"], [76]]]


def test_memory_is_bounded() -> None:
    """The oldest manifests and logins are dropped; a huge manifest is not stored."""
    quotas = Quotas("test")
    for number in range(MOST_LOGINS + 1):
        quotas.note(RegistryLogin(str(number), ""), RateLimit(5, 10))
    assert next(iter(quotas._limits)) == RegistryLogin("1", "")
    assert len(quotas._limits) == MOST_LOGINS
    for number in range(5):
        content = bytes(MOST_BYTES // 4)
        manifest = RecentManifest(Digest.of(content), content, "")
        quotas.remember("team/app", str(number), manifest)
    assert quotas.recent("team/app", "0") is None
    assert quotas.recent("team/app", "1") == manifest
    quotas.remember("team/app", "huge", RecentManifest(IMAGE.digest, bytes(MOST_BYTES + 1), ""))
    assert quotas.recent("team/app", "huge") is None
    assert quotas.recent("team/app", "4") == manifest
