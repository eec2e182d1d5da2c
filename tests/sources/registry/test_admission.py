"""After a 429, or if a host is unreachable, other processes send no requests in vain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.errors import RetryLater, Unavailable
from shiftergw.model.images import Platform
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.admission import STORE_PAUSE, Admission
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.retry import (
    Interruption,
    InterruptionKind,
    Patience,
    RegistryRetries,
)
from shiftergw.sources.registry.shared_breakers import NoBreakers, SharedBreakers
from shiftergw.store.sqlite.store import SqliteStore
from tests.certificates import Authority
from tests.images import make_image, tar_of
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import PUBLIC, REACTOR, Network, a_client, quiet
from tests.store.places import running

IMAGE = make_image([tar_of({"a": b"a"})])
ALICE, BOB = RegistryLogin("alice", "one"), RegistryLogin("bob", "two")
SEAL = Seal(bytes(32))
PATIENCE = Patience(first=0.01, quick=0.5)
TOO_MANY = b'{"errors":[{"message":"too many"}]}'


class ShiftedClock(Network):
    """A network whose clock, which breakers use, is `shift` seconds ahead."""

    def __init__(self) -> None:
        """Start without a shift."""
        super().__init__({})
        self.shift = 0.0

    def seconds(self) -> float:
        """Return the time."""
        return float(REACTOR.seconds()) + self.shift


def breakers_of(store: Any, machine: str = "node1") -> SharedBreakers:
    """Return the breakers that a process on a machine shares through a store."""
    return SharedBreakers(store, machine, lambda login: SEAL.fingerprint(login.password, "test"))


async def resolve(client: RegistryClient, login: RegistryLogin | None = None) -> bool:
    """Resolve an image; return whether it counts as private."""
    reference = ImageReference.parse("team/app")
    return (await client.resolve(reference, Platform(), login, quiet))[0].private


@pytest_twisted.async_yield_fixture()
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Return a store for the breakers."""
    async with running(tmp_path / "store.sqlite") as sqlite_store:
        yield sqlite_store


@asynccontextmanager
async def registry(limits: Callable[[Ask], object]) -> AsyncIterator[FakeRegistry]:
    """Run a registry; `limits` answers requests in its place."""
    server = FakeRegistry(IMAGE, misbehave=limits)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def of_anonymous(ask: Ask) -> object:
    """Answer 429 to anonymous requests, for six hours."""
    if ask.header("Authorization") is None:
        return ask.answer(429, TOO_MANY, Retry_After="21600")
    return None


@pytest_twisted.ensureDeferred
async def test_others_do_not_ask(store: SqliteStore) -> None:
    """After one 429 no process on the machine sends anonymous requests until the wait is over."""
    clock = ShiftedClock()
    async with registry(of_anonymous) as server:
        url = f"http://{server.host}"
        for number in range(3):
            async with a_client(
                url, clock, shared_breakers=breakers_of(store), patience=PATIENCE
            ) as client:
                with pytest.raises(RetryLater) as caught:
                    await resolve(client)
            assert len(server.requests) == 1, number
            assert caught.value.at - clock.seconds() == pytest.approx(21600, abs=5)
            assert (caught.value.why, caught.value.registry) == ("test (rate limit)", "test")
            assert caught.value.is_fixed
        async with a_client(
            url, clock, shared_breakers=breakers_of(store, "node2"), patience=PATIENCE
        ) as client:
            with pytest.raises(RetryLater):  # its own address counts by itself
                await resolve(client)
        assert len(server.requests) == 2


def with_tokens(ask: Ask) -> object:
    """Answer as a registry with tokens that limits anonymous users."""
    authorization = ask.header("Authorization")
    if ask.path.startswith("/token"):
        token = "anonymous" if authorization is None else "login"
        return ask.answer(200, f'{{"token": "{token}"}}'.encode())
    if authorization is None:
        challenge = f'Bearer realm="http://{ask.registry.host}/token"'
        return ask.answer(401, WWW_Authenticate=challenge)
    return authorization == "Bearer anonymous" and ask.answer(429, TOO_MANY, Retry_After="21600")


@pytest_twisted.ensureDeferred
async def test_a_login_is_not_shut_out(store: SqliteStore) -> None:
    """If anonymous requests are limited, a login is used; then the image counts as private."""
    async with (
        registry(with_tokens) as server,
        a_client(
            f"http://{server.host}", shared_breakers=breakers_of(store), patience=PATIENCE
        ) as client,
    ):
        assert await resolve(client, ALICE)
        with pytest.raises(RetryLater):
            await resolve(client)
        assert await resolve(client, BOB)


@pytest_twisted.ensureDeferred
async def test_a_bad_login_does_not_hide_the_limit(store: SqliteStore) -> None:
    """A user with a refused login waits for the anonymous limit: the image may be public."""

    def limits(ask: Ask) -> object:
        if ask.path.startswith("/token") and ask.header("Authorization") is not None:
            return ask.answer(401)
        return with_tokens(ask)

    async with (
        registry(limits) as server,
        a_client(
            f"http://{server.host}", shared_breakers=breakers_of(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater, match="slow down"):
            await resolve(client, ALICE)


@pytest_twisted.ensureDeferred
async def test_an_exhausted_login_is_its_owners(store: SqliteStore) -> None:
    """The limit of a login blocks no other login; the store has neither its name nor password."""

    def limits(ask: Ask) -> object:
        authorization = ask.header("Authorization")
        if authorization is None:
            return ask.answer(401, WWW_Authenticate='Basic realm="x"')
        is_exhausted = authorization == "Basic YWxpY2U6b25l"
        return is_exhausted and ask.answer(429, TOO_MANY, Retry_After="600")

    async with (
        registry(limits) as server,
        a_client(
            f"http://{server.host}", shared_breakers=breakers_of(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater, match="too many"):
            await resolve(client, ALICE)
        count = len(server.requests)
        with pytest.raises(RetryLater):
            await resolve(client, ALICE)
        assert not any(ask.header("Authorization") for ask in server.requests[count:])
        assert await resolve(client, BOB)
    rows = await store._read(lambda db: db.execute("SELECT * FROM breakers").fetchall())
    assert len(rows) == 1
    assert not any(word in str(rows) for word in ("alice", "one ", "YWxpY2U6b25l"))


@pytest_twisted.ensureDeferred
async def test_a_limit_of_the_request_for_a_challenge(store: SqliteStore) -> None:
    """A 429 to a request for `/v2/`, which has no login, is not a limit of the login.

    The registry hides its images: it answers 404 to anonymous requests, without a challenge.
    """

    def hides(ask: Ask) -> object:
        if ask.path == "/v2/":
            if ask.nth == 1:
                return ask.answer(429, TOO_MANY, Retry_After="600")
            return ask.answer(401, WWW_Authenticate='Basic realm="x"')
        return None if ask.header("Authorization") else ask.answer(404)

    async with (
        registry(hides) as server,
        a_client(
            f"http://{server.host}", shared_breakers=breakers_of(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater, match="too many"):
            await resolve(client, ALICE)
        rows = await store._read(lambda db: db.execute("SELECT * FROM breakers").fetchall())
        assert len(rows) == 1
        assert "limit test anonymous node1 other" in map(str, rows[0])
        assert await resolve(client, ALICE)


@pytest_twisted.ensureDeferred
async def test_the_first_probe_closes_it(store: SqliteStore) -> None:
    """One request probes the registry; the others wait for seconds until it has succeeded."""
    clock = ShiftedClock()
    waiting: list[Ask] = []

    def limits(ask: Ask) -> object:
        if not ask.path.endswith("/latest"):
            return None
        if ask.nth == 1:
            return ask.answer(429, TOO_MANY, Retry_After="60")
        if ask.nth == 2:
            waiting.append(ask)
            return True
        return None

    async with registry(limits) as server:
        url = f"http://{server.host}"
        async with (
            a_client(url, clock, shared_breakers=breakers_of(store), patience=PATIENCE) as first,
            a_client(url, clock, shared_breakers=breakers_of(store), patience=PATIENCE) as second,
        ):
            with pytest.raises(RetryLater):
                await resolve(first)
            clock.shift = 61
            probe = Deferred.fromCoroutine(resolve(first))
            while not waiting:
                await _turn()
            with pytest.raises(RetryLater) as caught:
                await resolve(second)
            assert 0 < caught.value.at - clock.seconds() < 10
            assert caught.value.registry == ""
            assert waiting[0].answer(404)
            probe.addErrback(lambda _: None)
            await probe
            assert await resolve(second) is False


@pytest_twisted.ensureDeferred
async def test_a_probe_that_fails_waits_longer(store: SqliteStore) -> None:
    """Each refused probe delays the next one further, whatever wait the registry names."""
    clock = ShiftedClock()
    waits = []
    async with (
        registry(lambda ask: ask.answer(429, TOO_MANY, Retry_After="1")) as server,
        a_client(
            f"http://{server.host}",
            clock,
            shared_breakers=breakers_of(store),
            patience=Patience(first=1, quick=0.5),
        ) as client,
    ):
        for _ in range(4):
            with pytest.raises(RetryLater) as caught:
                await resolve(client)
            waits.append(round(caught.value.at - clock.seconds()))
            clock.shift += caught.value.at - clock.seconds() + 0.1
    assert waits == [4, 8, 16, 32]
    assert len(server.requests) == 4


@pytest_twisted.ensureDeferred
async def test_parallel_requests_wait_for_their_own_probe(store: SqliteStore) -> None:
    """A pull that sends several requests at once does not block itself."""
    clock = ShiftedClock()

    def limits(ask: Ask) -> object:
        return not ask.registry.requests and ask.answer(429, Retry_After="60")

    async with (
        registry(limits) as server,
        a_client(
            f"http://{server.host}", clock, shared_breakers=breakers_of(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater):
            await resolve(client)
        clock.shift = 61
        assert await gather_or_cancel(resolve(client) for _ in range(5)) == [False] * 5


@pytest_twisted.ensureDeferred
async def test_a_host_that_is_away_is_left_alone(store: SqliteStore) -> None:
    """After the quick tries no process on the machine connects for a while; a probe ends that."""
    clock = ShiftedClock()
    server = FakeRegistry(IMAGE)
    await server.start()
    url = f"http://{server.host}"
    await server.stop()
    async with a_client(
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

    class Away(NoBreakers):
        async def check_breaker(self, key: str, now: float, seconds: float) -> None:
            raise Unavailable("The store is away.")

        async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
            raise Unavailable("The store is away.")

    state = {"is_limited": True}
    async with (
        registry(lambda ask: state["is_limited"] and ask.answer(429, Retry_After="60")) as server,
        a_client(
            f"http://{server.host}", shared_breakers=breakers_of(Away()), patience=PATIENCE
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
        a_client(
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
        async with a_client(
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


@pytest_twisted.ensureDeferred
async def test_the_shorter_of_two_limits_counts(store: SqliteStore) -> None:
    """A user whose login is limited for hours waits as long as one without a login."""

    def limits(ask: Ask) -> object:
        is_anonymous = ask.header("Authorization") in {None, "Bearer anonymous"}
        if ask.path.startswith("/token") or ask.header("Authorization") is None:
            return with_tokens(ask)
        return ask.answer(429, TOO_MANY, Retry_After="60" if is_anonymous else "21600")

    async with (
        registry(limits) as server,
        a_client(
            f"http://{server.host}", shared_breakers=breakers_of(store), patience=PATIENCE
        ) as client,
    ):
        for _ in range(2):
            with pytest.raises(RetryLater) as caught:
                await resolve(client, ALICE)
            assert caught.value.at - REACTOR.seconds() == pytest.approx(60, abs=5)


@pytest.mark.parametrize("retry_after", ["0", "Thu, 01 Jan 1970 00:00:00 GMT", "nonsense", "-5"])
@pytest_twisted.ensureDeferred
async def test_our_own_wait_is_the_least(store: SqliteStore, retry_after: str) -> None:
    """A time in the past, or not a time, does not shorten the wait."""
    async with (
        registry(lambda ask: ask.answer(429, Retry_After=retry_after)) as server,
        a_client(
            f"http://{server.host}", shared_breakers=breakers_of(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater) as caught:
            await resolve(client)
    assert len(server.requests) == PATIENCE.tries
    assert caught.value.registry == ""


@pytest_twisted.ensureDeferred
async def test_absurd_waits_are_bounded(store: SqliteStore) -> None:
    """The longest wait is a day."""
    async with (
        registry(lambda ask: ask.answer(429, Retry_After="9" * 15)) as server,
        a_client(
            f"http://{server.host}", shared_breakers=breakers_of(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater) as caught:
            await resolve(client)
    assert caught.value.at - REACTOR.seconds() == pytest.approx(86400, abs=5)


async def _turn() -> None:
    turn: Deferred[None] = Deferred()
    REACTOR.callLater(0.01, turn.callback, None)
    await turn


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
