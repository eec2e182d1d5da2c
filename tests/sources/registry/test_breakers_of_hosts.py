"""Breakers of hosts that are away, slow, or behind a redirect, and stores without breakers."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.errors import RetryLater, Unavailable
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.admission import STORE_PAUSE, Admission
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.retry import (
    Interruption,
    InterruptionKind,
    Patience,
    RegistryRetries,
)
from shiftergw.sources.registry.shared_breakers import NoBreakers
from shiftergw.store.sqlite.store import SqliteStore
from tests.certificates import Authority
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.breaker_sites import (
    IMAGE,
    PATIENCE,
    ShiftedClock,
    breakers_of,
    registry,
    resolve,
)
from tests.sources.registry.network import PUBLIC, REACTOR, Network, open_client, quiet


@pytest_twisted.ensureDeferred
async def test_a_host_that_is_away_is_left_alone(store: SqliteStore) -> None:
    """After the quick tries no process on the machine connects for a while; a probe ends that."""
    clock = ShiftedClock()
    server = FakeRegistry(IMAGE)
    await server.start()
    url = f"http://{server.host}"
    await server.stop()
    async with open_client(
        url, clock, shared_breakers=breakers_of(store), patience=PATIENCE
    ) as client:
        with pytest.raises(RetryLater, match="refused") as caught:
            await resolve(client)
        assert (caught.value.why, caught.value.registry) == ("test (unreachable)", "")
        tries = len(clock.destinations)
        assert tries == PATIENCE.tries
        clock.shift = -1  # the wait is a fraction of a second here
        with pytest.raises(RetryLater, match="are held back"):
            await resolve(client)
        assert len(clock.destinations) == tries
        clock.shift = 5
        with pytest.raises(RetryLater, match="refused"):
            await resolve(client)
        assert len(clock.destinations) == tries + 1  # a probe has one try


@pytest_twisted.ensureDeferred
async def test_a_store_that_is_away_holds_nothing_back() -> None:
    """Without the store requests are sent as if no breaker were open."""

    class UnavailableBreakers(NoBreakers):
        async def check_breaker(self, key: str, now: float, seconds: float) -> None:
            raise Unavailable("The store is away.")

        async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
            raise Unavailable("The store is away.")

    state = {"is_limited": True}
    async with (
        registry(lambda ask: state["is_limited"] and ask.answer(429, Retry_After="60")) as server,
        open_client(
            f"http://{server.host}",
            shared_breakers=breakers_of(UnavailableBreakers()),
            patience=PATIENCE,
        ) as client,
    ):
        with pytest.raises(RetryLater):
            await resolve(client)
        state["is_limited"] = False
        assert await resolve(client) is False


def test_a_store_that_hangs_is_asked_once() -> None:
    """Requests in parallel wait for one check that fails, not for one after another."""
    clock = Clock()

    class Hanging(NoBreakers):
        checks = 0

        async def check_breaker(self, key: str, now: float, seconds: float) -> None:
            self.checks += 1
            await pause(5, clock)
            raise Unavailable("The store is away.")

    store = Hanging()
    admission = Admission("test", breakers_of(store), PATIENCE, clock, lambda: 0.5)
    requests: list[int] = []

    async def send(number: int) -> None:
        async with admission.request(None), admission.host("a.test:443"):
            requests.append(number)

    for number in range(6):
        Deferred.fromCoroutine(send(number))
    clock.advance(5)
    assert sorted(requests) == list(range(6))
    assert store.checks == 1
    clock.advance(STORE_PAUSE)
    Deferred.fromCoroutine(send(6))
    assert store.checks == 2
    clock.advance(5)
    assert requests[-1] == 6


@pytest_twisted.ensureDeferred
async def test_closed_breakers_take_no_memory() -> None:
    """A registry may redirect to any number of hosts; hosts that answer take no memory."""
    admission = Admission("test", breakers_of(NoBreakers()), PATIENCE, Clock(), lambda: 0.5)
    for number in range(100):
        async with admission.host(f"{number}.test:443"):
            pass
    assert (admission._trips, admission._probes, admission._own_until) == ({}, {}, {})


class Recorder(NoBreakers):
    """Breakers that block no request; `trips` has the key of each that tripped."""

    def __init__(self) -> None:
        """Start without trips."""
        self.trips: list[str] = []

    async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
        """Record the key."""
        self.trips.append(key)


@pytest.mark.parametrize(
    ("limits", "trips"),
    [
        (Limits(header=20, redirects=0.4), 0),
        (Limits(header=0.4, redirects=20), 1),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_host_with_little_time_is_not_unreachable(limits: Limits, trips: int) -> None:
    """A slow chain of redirects does not block requests to the host at its end."""

    def redirect(ask: Ask) -> object:
        return ask.path == "/slow" or ask.answer(307, Location="/slow")

    breakers = Recorder()
    single_try = Patience(tries=1, first=0.01)
    async with (
        registry(redirect) as server,
        open_client(
            f"http://{server.host}",
            limits=limits,
            shared_breakers=breakers_of(breakers),
            patience=single_try,
        ) as client,
    ):
        with pytest.raises(RetryLater, match="does not answer within"):
            await resolve(client)
    assert len(breakers.trips) == trips


@pytest.mark.parametrize(
    ("path", "trips"), [("/blobs/signed", []), ("/v2/team/app/blobs/x", ["limit test"])]
)
@pytest_twisted.ensureDeferred
async def test_the_limit_of_an_object_store(path: str, trips: list[str], tmp_path: Path) -> None:
    """A 429 of an object store limits no login, unlike a 429 of another registry."""
    authority = Authority(tmp_path)
    names = ["registry.example", "store.example"]
    network = Network({name: [PUBLIC] for name in names})
    source = FakeRegistry(IMAGE)
    storage = FakeRegistry(misbehave=lambda ask: ask.answer(429, Retry_After="3600"))
    breakers = Recorder()
    await source.start(authority.options(*names))
    await storage.start(authority.options(*names))
    try:
        target = f"https://store.example:{storage.host.rpartition(':')[2]}{path}"
        source.misbehave = lambda ask: "/blobs/" in ask.path and ask.answer(307, Location=target)
        url = f"https://registry.example:{source.host.rpartition(':')[2]}"
        async with open_client(
            url,
            network,
            cacert=authority.pem,
            shared_breakers=breakers_of(breakers),
            patience=PATIENCE,
        ) as client:
            with pytest.raises(RetryLater, match="slow down") as caught:
                await resolve(client)
    finally:
        await storage.stop()
        await source.stop()
    assert caught.value.at - REACTOR.seconds() == pytest.approx(3600, abs=5)
    assert [key.partition(" anonymous")[0] for key in breakers.trips] == trips


class Pace:
    """Read bodies of a registry at a pace that the test sets."""

    def __init__(self, store: SqliteStore, clock: Clock, machine: str = "node1") -> None:
        """Share breakers through the store."""
        patience = Patience(first=1, quick=0.5)
        self.admission = Admission(
            "test", breakers_of(store, machine), patience, clock, lambda: 0.5
        )
        self.clock = clock

    async def read(self, kind: str, *, slow: bool = False) -> None:
        """Read a body; raise the errors of a pull's requests."""

        async def attempt() -> None:
            async with self.admission.pace(kind):
                if slow:
                    raise Interruption(
                        "It is too slow.", kind=InterruptionKind.SLOW, why="too slow"
                    )

        patience = Patience(first=1, quick=0.5)
        postpone = self.admission.postpone
        await RegistryRetries(patience, self.clock, lambda: 0.5, quiet, postpone).run(attempt)


@pytest.mark.parametrize("kind", ["documents", "layers"])
@pytest_twisted.ensureDeferred
async def test_a_slow_registry_is_left_alone(store: SqliteStore, kind: str) -> None:
    """After one slow body no pull on the machine reads another until a probe is fast enough."""
    clock = Clock()
    clock.advance(1_000_000)
    first_reader, second_reader = Pace(store, clock), Pace(store, clock)
    waits = []
    for _ in range(3):
        with pytest.raises(RetryLater, match="too slow") as caught:
            await first_reader.read(kind, slow=True)
        waits.append(caught.value.at - clock.seconds())
        with pytest.raises(RetryLater, match="held back") as caught:
            await second_reader.read(kind)
        assert caught.value.why == "test (too slow)"
        clock.advance(waits[-1])
    assert waits == [4, 8, 16]
    other_kind = "layers" if kind == "documents" else "documents"
    await second_reader.read(other_kind)
    await Pace(store, clock, "node2").read(kind)
    await second_reader.read(kind)
    await first_reader.read(kind)
