"""What a registry answers 429 to, and a host that is away, is not asked in vain by others."""

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
from shiftergw.image import Platform
from shiftergw.model import ImageReference, RegistryLogin
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.admission import STORE_PAUSE, Admission
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.retry import Interruption, Patience, with_retries
from shiftergw.sources.registry.shared_breakers import NoBreakers, SharedBreakers
from shiftergw.store.sqlite.store import SqliteStore
from tests.certificates import Authority
from tests.images import make_image, tar_of
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import PUBLIC, REACTOR, Network, a_client
from tests.store.places import running

IMAGE = make_image([tar_of({"a": b"a"})])
ALICE, BOB = RegistryLogin("alice", "one"), RegistryLogin("bob", "two")
SEAL = Seal(bytes(32))
PATIENCE = Patience(first=0.01, quick=0.5)
TOO_MANY = b'{"errors":[{"message":"too many"}]}'


class Later(Network):
    """The network, some seconds later by the clock that breakers are judged by."""

    def __init__(self) -> None:
        """Be now."""
        super().__init__({})
        self.passed = 0.0

    def seconds(self) -> float:
        """Return the time."""
        return float(REACTOR.seconds()) + self.passed


def shared(store: Any, machine: str = "node1") -> SharedBreakers:
    """Return what a process of a machine shares with others by a store."""
    return SharedBreakers(store, machine, lambda login: SEAL.fingerprint(login.password, "test"))


def quiet(_: str) -> None:
    """Say nothing."""


async def resolve(client: RegistryClient, login: RegistryLogin | None = None) -> bool:
    """Resolve an image; return whether it counts as private."""
    reference = ImageReference.parse("team/app")
    return (await client.resolve(reference, Platform(), login, quiet))[0].private


@pytest_twisted.async_yield_fixture()
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Return a store for the breakers."""
    async with running(tmp_path / "store.sqlite") as opened:
        yield opened


@asynccontextmanager
async def registry(limits: Callable[[Ask], object]) -> AsyncIterator[FakeRegistry]:
    """Run a registry that misbehaves as `limits` says."""
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
    """After one 429 no process of the machine asks anonymously until the registry's time."""
    clock = Later()
    async with registry(of_anonymous) as server:
        url = f"http://{server.host}"
        for number in range(3):
            async with a_client(
                url, clock, shared_breakers=shared(store), patience=PATIENCE
            ) as client:
                with pytest.raises(RetryLater) as caught:
                    await resolve(client)
            assert len(server.asked) == 1, number
            assert caught.value.at - clock.seconds() == pytest.approx(21600, abs=5)
            assert (caught.value.why, caught.value.registry) == ("test (rate limit)", "test")
            assert caught.value.is_fixed
        async with a_client(
            url, clock, shared_breakers=shared(store, "node2"), patience=PATIENCE
        ) as client:
            with pytest.raises(RetryLater):  # its own address counts by itself
                await resolve(client)
        assert len(server.asked) == 2


def with_tokens(ask: Ask) -> object:
    """Answer as a registry with tokens, which limits those of anonymous users."""
    given = ask.header("Authorization")
    if ask.path.startswith("/token"):
        token = "anonymous" if given is None else "login"
        return ask.answer(200, f'{{"token": "{token}"}}'.encode())
    if given is None:
        challenge = f'Bearer realm="http://{ask.registry.host}/token"'
        return ask.answer(401, WWW_Authenticate=challenge)
    return given == "Bearer anonymous" and ask.answer(429, TOO_MANY, Retry_After="21600")


@pytest_twisted.ensureDeferred
async def test_a_login_is_not_shut_out(store: SqliteStore) -> None:
    """Who has a login uses it where anonymous requests are limited; the image counts as his own."""
    async with (
        registry(with_tokens) as server,
        a_client(
            f"http://{server.host}", shared_breakers=shared(store), patience=PATIENCE
        ) as client,
    ):
        assert await resolve(client, ALICE)
        with pytest.raises(RetryLater):
            await resolve(client)
        assert await resolve(client, BOB)


@pytest_twisted.ensureDeferred
async def test_a_bad_login_does_not_hide_the_limit(store: SqliteStore) -> None:
    """Whose login is refused waits for the anonymous limit: the image may be public."""

    def limits(ask: Ask) -> object:
        if ask.path.startswith("/token") and ask.header("Authorization") is not None:
            return ask.answer(401)
        return with_tokens(ask)

    async with (
        registry(limits) as server,
        a_client(
            f"http://{server.host}", shared_breakers=shared(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater, match="slow down"):
            await resolve(client, ALICE)


@pytest_twisted.ensureDeferred
async def test_an_exhausted_login_is_its_owners(store: SqliteStore) -> None:
    """A login that is limited shuts out nobody else's; the store learns neither name nor word."""

    def limits(ask: Ask) -> object:
        given = ask.header("Authorization")
        if given is None:
            return ask.answer(401, WWW_Authenticate='Basic realm="x"')
        exhausted = given == "Basic YWxpY2U6b25l"
        return exhausted and ask.answer(429, TOO_MANY, Retry_After="600")

    async with (
        registry(limits) as server,
        a_client(
            f"http://{server.host}", shared_breakers=shared(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater, match="too many"):
            await resolve(client, ALICE)
        asked = len(server.asked)
        with pytest.raises(RetryLater):
            await resolve(client, ALICE)
        assert not any(ask.header("Authorization") for ask in server.asked[asked:])
        assert await resolve(client, BOB)
    rows = await store._read(lambda db: db.execute("SELECT * FROM breakers").fetchall())
    assert len(rows) == 1
    assert not any(word in str(rows) for word in ("alice", "one ", "YWxpY2U6b25l"))


@pytest_twisted.ensureDeferred
async def test_a_limit_of_the_request_for_a_challenge(store: SqliteStore) -> None:
    """A 429 at `/v2/`, which is asked without a login, is no limit of the login.

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
            f"http://{server.host}", shared_breakers=shared(store), patience=PATIENCE
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
    """At its time one asks; while it does the others wait for seconds, and then all may."""
    clock = Later()
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
            a_client(url, clock, shared_breakers=shared(store), patience=PATIENCE) as first,
            a_client(url, clock, shared_breakers=shared(store), patience=PATIENCE) as second,
        ):
            with pytest.raises(RetryLater):
                await resolve(first)
            clock.passed = 61
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
    """Each time that a probe is refused the next one comes later, whatever the registry asks."""
    clock = Later()
    waits = []
    async with (
        registry(lambda ask: ask.answer(429, TOO_MANY, Retry_After="1")) as server,
        a_client(
            f"http://{server.host}",
            clock,
            shared_breakers=shared(store),
            patience=Patience(first=1, quick=0.5),
        ) as client,
    ):
        for _ in range(4):
            with pytest.raises(RetryLater) as caught:
                await resolve(client)
            waits.append(round(caught.value.at - clock.seconds()))
            clock.passed += caught.value.at - clock.seconds() + 0.1
    assert waits == [4, 8, 16, 32]
    assert len(server.asked) == 4


@pytest_twisted.ensureDeferred
async def test_parallel_requests_wait_for_their_own_probe(store: SqliteStore) -> None:
    """A pull that sends several requests at once does not hold itself back."""
    clock = Later()

    def limits(ask: Ask) -> object:
        return not ask.registry.asked and ask.answer(429, Retry_After="60")

    async with (
        registry(limits) as server,
        a_client(
            f"http://{server.host}", clock, shared_breakers=shared(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater):
            await resolve(client)
        clock.passed = 61
        assert await gather_or_cancel(resolve(client) for _ in range(5)) == [False] * 5


@pytest_twisted.ensureDeferred
async def test_a_host_that_is_away_is_left_alone(store: SqliteStore) -> None:
    """After the quick tries nobody on this machine connects to it for a while; a probe ends it."""
    clock = Later()
    server = FakeRegistry(IMAGE)
    await server.start()
    url = f"http://{server.host}"
    await server.stop()
    async with a_client(url, clock, shared_breakers=shared(store), patience=PATIENCE) as client:
        with pytest.raises(RetryLater, match="refused") as caught:
            await resolve(client)
        assert (caught.value.why, caught.value.registry) == ("test (unreachable)", "")
        tried = len(clock.reached)
        assert tried == PATIENCE.tries
        clock.passed = -1  # the wait is a fraction of a second here
        with pytest.raises(RetryLater, match="are held back"):
            await resolve(client)
        assert len(clock.reached) == tried
        clock.passed = 5
        with pytest.raises(RetryLater, match="refused"):
            await resolve(client)
        assert len(clock.reached) == tried + 1  # a probe has one try


@pytest_twisted.ensureDeferred
async def test_a_store_that_is_away_holds_nothing_back() -> None:
    """Without it requests are sent as if nothing had been told."""

    class Away(NoBreakers):
        async def check_breaker(self, key: str, now: float, seconds: float) -> None:
            raise Unavailable("The store is away.")

        async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
            raise Unavailable("The store is away.")

    limited = {"yes": True}
    async with (
        registry(lambda ask: limited["yes"] and ask.answer(429, Retry_After="60")) as server,
        a_client(
            f"http://{server.host}", shared_breakers=shared(Away()), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater):
            await resolve(client)
        limited["yes"] = False
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
    admission = Admission("test", shared(store), PATIENCE, clock, lambda: 0.5)
    sent: list[int] = []

    async def send(number: int) -> None:
        async with admission.request(None), admission.host("a.test:443"):
            sent.append(number)

    for number in range(6):
        Deferred.fromCoroutine(send(number))
    clock.advance(5)
    assert sorted(sent) == list(range(6))
    assert store.checks == 1
    clock.advance(STORE_PAUSE)
    Deferred.fromCoroutine(send(6))
    assert store.checks == 2
    clock.advance(5)
    assert sent[-1] == 6


@pytest_twisted.ensureDeferred
async def test_closed_breakers_take_no_memory() -> None:
    """A registry may redirect to any number of hosts: nothing stays of those that answered."""
    admission = Admission("test", shared(NoBreakers()), PATIENCE, Clock(), lambda: 0.5)
    for number in range(100):
        async with admission.host(f"{number}.test:443"):
            pass
    assert (admission._trips, admission._probes, admission._own_until) == ({}, {}, {})


class Recorder(NoBreakers):
    """Breakers that hold nothing back; `trips` has the key of each that tripped."""

    def __init__(self) -> None:
        """Start without any."""
        self.trips: list[str] = []

    async def trip_breaker(self, key: str, until: float, why: str, now: float) -> None:
        """Note the key."""
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
    """A chain of redirects that takes long holds no requests to the host at its end back."""

    def redirect(ask: Ask) -> object:
        return ask.path == "/slow" or ask.answer(307, Location="/slow")

    breakers = Recorder()
    once = Patience(tries=1, first=0.01)
    async with (
        registry(redirect) as server,
        a_client(
            f"http://{server.host}", limits=limits, shared_breakers=shared(breakers), patience=once
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
    """An object store limits nobody's login; a registry that another redirects to does."""
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
            url, network, cacert=authority.pem, shared_breakers=shared(breakers), patience=PATIENCE
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
            f"http://{server.host}", shared_breakers=shared(store), patience=PATIENCE
        ) as client,
    ):
        for _ in range(2):
            with pytest.raises(RetryLater) as caught:
                await resolve(client, ALICE)
            assert caught.value.at - REACTOR.seconds() == pytest.approx(60, abs=5)


@pytest.mark.parametrize("asked", ["0", "Thu, 01 Jan 1970 00:00:00 GMT", "nonsense", "-5"])
@pytest_twisted.ensureDeferred
async def test_our_own_wait_is_the_least(store: SqliteStore, asked: str) -> None:
    """A time that has passed, or is none, does not make us hammer."""
    async with (
        registry(lambda ask: ask.answer(429, Retry_After=asked)) as server,
        a_client(
            f"http://{server.host}", shared_breakers=shared(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater) as caught:
            await resolve(client)
    assert len(server.asked) == PATIENCE.tries
    assert caught.value.registry == ""


@pytest_twisted.ensureDeferred
async def test_absurd_waits_are_bounded(store: SqliteStore) -> None:
    """No registry is left alone for longer than a day."""
    async with (
        registry(lambda ask: ask.answer(429, Retry_After="9" * 15)) as server,
        a_client(
            f"http://{server.host}", shared_breakers=shared(store), patience=PATIENCE
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
    """What reads bodies of a registry at a pace that the test sets."""

    def __init__(self, store: SqliteStore, clock: Clock, machine: str = "node1") -> None:
        """Share breakers by the store."""
        patience = Patience(first=1, quick=0.5)
        self.admission = Admission("test", shared(store, machine), patience, clock, lambda: 0.5)
        self.clock = clock

    async def read(self, kind: str, *, slow: bool = False) -> None:
        """Read a body; raise as a pull's requests do."""

        async def attempt() -> None:
            async with self.admission.pace(kind):
                if slow:
                    raise Interruption("It is too slow.", why="too slow", slow=True)

        await with_retries(
            attempt,
            patience=Patience(first=1, quick=0.5),
            clock=self.clock,
            random=lambda: 0.5,
            say=quiet,
            postpone=self.admission.postpone,
        )


@pytest.mark.parametrize("kind", ["documents", "layers"])
@pytest_twisted.ensureDeferred
async def test_a_slow_registry_is_left_alone(store: SqliteStore, kind: str) -> None:
    """After one slow body no pull of the machine reads another until a probe is fast enough."""
    clock = Clock()
    clock.advance(1_000_000)
    ours, others = Pace(store, clock), Pace(store, clock)
    waits = []
    for _ in range(3):
        with pytest.raises(RetryLater, match="too slow") as caught:
            await ours.read(kind, slow=True)
        waits.append(caught.value.at - clock.seconds())
        with pytest.raises(RetryLater, match="held back") as caught:
            await others.read(kind)
        assert caught.value.why == "test (too slow)"
        clock.advance(waits[-1])
    assert waits == [4, 8, 16]
    other = "layers" if kind == "documents" else "documents"
    await others.read(other)
    await Pace(store, clock, "node2").read(kind)
    await others.read(kind)
    await ours.read(kind)
