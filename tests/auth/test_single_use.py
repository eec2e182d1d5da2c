"""A credential is accepted once over all gateways: two daemons with one key, one shared store."""

from __future__ import annotations

import os
import string
from collections.abc import Collection, Iterator

import pytest
import pytest_twisted

from shiftergw.auth import single_use as single_use_module
from shiftergw.auth.munge import MungeAuthenticator
from shiftergw.auth.single_use import SingleUse
from shiftergw.auth.users import HostUsers
from shiftergw.errors import NotAuthenticated, Unavailable
from shiftergw.model.requests import Session
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import CREDENTIAL_SECONDS, ReplayUnchecked
from tests.installed_reactor import reactor
from tests.munged import MungeDaemon

SYSTEM = "perlmutter"
BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"


class SharedStore:
    """The used credentials of two gateways; unavailable while `is_away`."""

    def __init__(self) -> None:
        """Start without credentials."""
        self.digests: set[bytes] = set()
        self.is_away = False

    async def use(self, digest: bytes, now: float) -> bool:
        """See `UsedCredentials`."""
        first = digest not in self.digests
        await self.note_used([digest], 0)
        return first

    async def note_used(self, digests: Collection[bytes], now: float) -> None:
        """See `UsedCredentials`."""
        if self.is_away:
            raise Unavailable("Away.", detail="the host")
        self.digests.update(digests)


class AdjustableClock:
    """The clock of the reactor, put forward by `offset` seconds."""

    offset = 0.0

    def seconds(self) -> float:
        """Return the time."""
        now: float = reactor.seconds()
        return now + self.offset


@pytest.fixture(scope="module")
def daemons() -> Iterator[tuple[MungeDaemon, MungeDaemon]]:
    """Run the munge daemons of two gateways' machines, with one key."""
    with MungeDaemon() as first, MungeDaemon(key=first.key) as second:
        yield first, second


Gateways = tuple[SingleUse, SingleUse, SharedStore, AdjustableClock]


@pytest.fixture
def gateways(daemons: tuple[MungeDaemon, MungeDaemon], threads: Threads) -> Gateways:
    """Return the authenticators of two gateways, their store, and their clock."""
    store, clock = SharedStore(), AdjustableClock()
    users = HostUsers(threads, reactor)
    first, second = (
        SingleUse(
            {SYSTEM: MungeAuthenticator(SYSTEM, munged.socket, users, (), reactor)},
            store,
            clock,  # type: ignore[arg-type] # no more of it is used
        )
        for munged in daemons
    )
    return first, second, store, clock


async def refusal(gateway: SingleUse, credential: str) -> NotAuthenticated:
    """Return the error with which a gateway refuses a credential."""
    with pytest.raises(NotAuthenticated) as caught:
        await gateway.authenticate(credential, SYSTEM)
    return caught.value


@pytest_twisted.ensureDeferred
async def test_used_at_another_gateway(
    gateways: Gateways, daemons: tuple[MungeDaemon, MungeDaemon]
) -> None:
    """The second gateway refuses it with the same words as the first one."""
    first, second, _, _ = gateways
    credential = daemons[0].encode()
    assert (await first.authenticate(credential, SYSTEM)).uid == os.getuid()
    assert str(await refusal(second, credential)) == str(await refusal(first, credential))
    assert (await second.authenticate(daemons[0].encode(), SYSTEM)).uid == os.getuid()


def rewritten(credential: str) -> str | None:
    """Return other characters for the same bytes; None if base64 has no surplus bit in them."""
    body = credential.removeprefix("MUNGE:").rstrip(":")
    text = body.rstrip("=")
    if text == body:
        return None
    last = BASE64[BASE64.index(text[-1]) ^ 1]
    return f"MUNGE:{text[:-1]}{last}{'=' * (len(body) - len(text))}:"


@pytest_twisted.ensureDeferred
async def test_the_same_credential_in_other_characters(
    gateways: Gateways, daemons: tuple[MungeDaemon, MungeDaemon]
) -> None:
    """Daemons accept other characters for the same bytes, so they are the same credential."""
    first, second, _, _ = gateways
    credential, same = next(
        (original, copy)
        for n in range(6)
        if (copy := rewritten(original := daemons[0].munge("--cipher=none", payload=b" " * n)))
    )
    assert credential != same
    await first.authenticate(credential, SYSTEM)
    assert "used before" in str(await refusal(second, same))
    await refusal(second, f" {credential}")


@pytest_twisted.ensureDeferred
async def test_a_session_is_renewed_without_a_credential(gateways: Gateways) -> None:
    """The user is looked up again; nothing is recorded."""
    session = Session(SYSTEM, "a former name", os.getuid(), "", os.getgid(), admin=True)
    renewed_session = await gateways[0].renew(session)
    assert renewed_session.user != session.user
    assert renewed_session.groups >= {os.getgid()}
    assert not renewed_session.admin
    assert gateways[2].digests == set()


@pytest_twisted.ensureDeferred
async def test_invalid_credentials_are_not_recorded(gateways: Gateways) -> None:
    """The store gets only credentials that the daemon accepts."""
    first, _, store, _ = gateways
    await refusal(first, "MUNGE:AAAA:")
    await refusal(first, "good:root:root")
    assert store.digests == set()


@pytest_twisted.ensureDeferred
async def test_while_the_store_is_away(
    gateways: Gateways, daemons: tuple[MungeDaemon, MungeDaemon]
) -> None:
    """No credential is accepted; each is recorded as used as soon as the store is back."""
    first, second, store, _ = gateways
    store.is_away = True
    credential = daemons[0].encode()
    with pytest.raises(ReplayUnchecked) as caught:
        await first.authenticate(credential, SYSTEM)
    assert (caught.value.session.uid, caught.value.detail) == (os.getuid(), "the host")
    assert (caught.value.http_status, caught.value.retryable) == (503, True)
    await refusal(first, credential)  # the daemon has decoded it before
    await first.settle()
    store.is_away = False
    await first.settle()
    assert len(store.digests) == 1
    await refusal(second, credential)


@pytest_twisted.ensureDeferred
async def test_the_number_of_unrecorded_credentials_is_limited(
    gateways: Gateways, daemons: tuple[MungeDaemon, MungeDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit every request is refused; credentials that have expired are dropped."""
    monkeypatch.setattr(single_use_module, "MAX_UNRECORDED", 2)
    first, _, store, clock = gateways
    store.is_away = True
    for _ in range(2):
        with pytest.raises(ReplayUnchecked):
            await first.authenticate(daemons[0].encode(), SYSTEM)
    with pytest.raises(Unavailable) as caught:
        await first.authenticate(daemons[0].encode(), SYSTEM)
    assert not isinstance(caught.value, ReplayUnchecked)
    clock.offset = CREDENTIAL_SECONDS + 1
    await first.settle()
    store.is_away = False
    await first.settle()
    assert store.digests == set()


@pytest_twisted.ensureDeferred
async def test_many_unrecorded_credentials(
    gateways: Gateways, daemons: tuple[MungeDaemon, MungeDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All credentials are recorded, in batches."""
    monkeypatch.setattr(single_use_module, "BATCH_SIZE", 2)
    first, _, store, _ = gateways
    store.is_away = True
    for _ in range(5):
        with pytest.raises(ReplayUnchecked):
            await first.authenticate(daemons[0].encode(), SYSTEM)
    store.is_away = False
    await first.settle()
    assert len(store.digests) == 5
