"""A credential counts once over all gateways: two daemons with one key, and what both ask."""

from __future__ import annotations

import os
import string
from collections.abc import Collection, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor

from shiftergw.auth import once as once_module
from shiftergw.auth.munge import MungeAuthenticator
from shiftergw.auth.once import Once
from shiftergw.auth.users import HostUsers
from shiftergw.errors import NotAuthenticated, Unavailable
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import CREDENTIAL_SECONDS, ReplayUnchecked
from tests.munged import Munged

reactor: Any = global_reactor
SYSTEM = "perlmutter"
BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"


class Shared:
    """What two gateways share; it may be `away`."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.digests: set[bytes] = set()
        self.away = False

    async def use(self, digest: bytes, now: float) -> bool:
        """See `UsedCredentials`."""
        first = digest not in self.digests
        await self.note_used([digest], 0)
        return first

    async def note_used(self, digests: Collection[bytes], now: float) -> None:
        """See `UsedCredentials`."""
        if self.away:
            raise Unavailable("Away.", detail="the host")
        self.digests.update(digests)


class Later:
    """A clock that can be put forward."""

    ahead = 0.0

    def seconds(self) -> float:
        """Return the time."""
        now: float = reactor.seconds()
        return now + self.ahead


@pytest.fixture(scope="module")
def daemons() -> Iterator[tuple[Munged, Munged]]:
    """Give the daemons of two gateways' machines."""
    with Munged() as one, Munged(key=one.key) as other:
        yield one, other


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Give a pool of threads that runs while the test does."""
    pool = Threads(reactor, 4, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


Gateways = tuple[Once, Once, Shared, Later]


@pytest.fixture
def gateways(daemons: tuple[Munged, Munged], threads: Threads) -> Gateways:
    """Return what knows the users at two gateways, what they share, and their clock."""
    shared, clock = Shared(), Later()
    users = HostUsers(threads, reactor)
    one, other = (
        Once(
            {SYSTEM: MungeAuthenticator(SYSTEM, munged.socket, users, (), reactor)},
            shared,
            clock,  # type: ignore[arg-type] # no more of it is used
        )
        for munged in daemons
    )
    return one, other, shared, clock


async def refusal(once: Once, credential: str) -> NotAuthenticated:
    """Return why a credential is refused."""
    with pytest.raises(NotAuthenticated) as caught:
        await once.authenticate(credential, SYSTEM)
    return caught.value


@pytest_twisted.ensureDeferred
async def test_used_at_another_gateway(gateways: Gateways, daemons: tuple[Munged, Munged]) -> None:
    """What one gateway has taken the other refuses, in the words of one that saw it itself."""
    one, other, _, _ = gateways
    credential = daemons[0].encode()
    assert (await one.authenticate(credential, SYSTEM)).uid == os.getuid()
    assert str(await refusal(other, credential)) == str(await refusal(one, credential))
    assert (await other.authenticate(daemons[0].encode(), SYSTEM)).uid == os.getuid()


def rewritten(credential: str) -> str | None:
    """Return the same bytes in other characters, if base64 leaves a bit open."""
    body = credential.removeprefix("MUNGE:").rstrip(":")
    text = body.rstrip("=")
    if text == body:
        return None
    last = BASE64[BASE64.index(text[-1]) ^ 1]
    return f"MUNGE:{text[:-1]}{last}{'=' * (len(body) - len(text))}:"


@pytest_twisted.ensureDeferred
async def test_the_same_written_otherwise(
    gateways: Gateways, daemons: tuple[Munged, Munged]
) -> None:
    """Daemons take a credential with other characters for the same bytes: so is it the same."""
    one, other, _, _ = gateways
    credential, same = next(
        (made, again)
        for n in range(6)
        if (again := rewritten(made := daemons[0].munge("--cipher=none", payload=b" " * n)))
    )
    assert credential != same
    await one.authenticate(credential, SYSTEM)
    assert "used before" in str(await refusal(other, same))
    await refusal(other, f" {credential}")


@pytest_twisted.ensureDeferred
async def test_what_the_daemon_refuses_is_not_asked(gateways: Gateways) -> None:
    """The store hears only of credentials that are some."""
    one, _, shared, _ = gateways
    await refusal(one, "MUNGE:AAAA:")
    await refusal(one, "good:root:root")
    assert shared.digests == set()


@pytest_twisted.ensureDeferred
async def test_while_the_store_is_away(gateways: Gateways, daemons: tuple[Munged, Munged]) -> None:
    """Nobody is let in; what came meanwhile counts as used as soon as the store is back."""
    one, other, shared, _ = gateways
    shared.away = True
    credential = daemons[0].encode()
    with pytest.raises(ReplayUnchecked) as caught:
        await one.authenticate(credential, SYSTEM)
    assert (caught.value.session.uid, caught.value.detail) == (os.getuid(), "the host")
    assert (caught.value.http_status, caught.value.retryable) == (503, True)
    await refusal(one, credential)  # the daemon has seen it
    await one.settle()
    shared.away = False
    await one.settle()
    assert len(shared.digests) == 1
    await refusal(other, credential)


@pytest_twisted.ensureDeferred
async def test_what_is_owed_has_an_end(
    gateways: Gateways, daemons: tuple[Munged, Munged], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a number of credentials owed nobody is told anything; old ones are owed no more."""
    monkeypatch.setattr(once_module, "MOST_OWED", 2)
    one, _, shared, clock = gateways
    shared.away = True
    for _ in range(2):
        with pytest.raises(ReplayUnchecked):
            await one.authenticate(daemons[0].encode(), SYSTEM)
    with pytest.raises(Unavailable) as caught:
        await one.authenticate(daemons[0].encode(), SYSTEM)
    assert not isinstance(caught.value, ReplayUnchecked)
    clock.ahead = CREDENTIAL_SECONDS + 1
    await one.settle()
    shared.away = False
    await one.settle()
    assert shared.digests == set()


@pytest_twisted.ensureDeferred
async def test_many_that_are_owed(
    gateways: Gateways, daemons: tuple[Munged, Munged], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are told, some at a time."""
    monkeypatch.setattr(once_module, "MOST_TOGETHER", 2)
    one, _, shared, _ = gateways
    shared.away = True
    for _ in range(5):
        with pytest.raises(ReplayUnchecked):
            await one.authenticate(daemons[0].encode(), SYSTEM)
    shared.away = False
    await one.settle()
    assert len(shared.digests) == 5
