"""After a 429, or if a host is unreachable, other processes send no requests in vain."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.errors import RetryLater
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.sources.registry.retry import (
    Patience,
)
from shiftergw.store.sqlite.store import SqliteStore
from tests.registries import Ask
from tests.sources.registry.breaker_sites import (
    PATIENCE,
    ShiftedClock,
    breakers_of,
    registry,
    resolve,
)
from tests.sources.registry.network import REACTOR, open_client

ALICE, BOB = RegistryLogin("alice", "one"), RegistryLogin("bob", "two")
TOO_MANY = b'{"errors":[{"message":"too many"}]}'


def of_anonymous(ask: Ask) -> object:
    """Answer 429 to anonymous requests, for six hours."""
    if ask.header("Authorization") is None:
        return ask.answer(429, TOO_MANY, Retry_After="21600")
    return None


@pytest_twisted.ensureDeferred
async def test_after_a_429_no_process_of_the_machine_asks(store: SqliteStore) -> None:
    """After one 429 no process on the machine sends anonymous requests until the wait is over."""
    clock = ShiftedClock()
    async with registry(of_anonymous) as server:
        url = f"http://{server.host}"
        for number in range(3):
            async with open_client(
                url, clock, shared_breakers=breakers_of(store), patience=PATIENCE
            ) as client:
                with pytest.raises(RetryLater) as caught:
                    await resolve(client)
            assert len(server.requests) == 1, number
            assert caught.value.at - clock.seconds() == pytest.approx(21600, abs=5)
            assert (caught.value.why, caught.value.registry) == ("test (rate limit)", "test")
            assert caught.value.is_fixed
        async with open_client(
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
        open_client(
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
        open_client(
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
        open_client(
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
        open_client(
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
            open_client(url, clock, shared_breakers=breakers_of(store), patience=PATIENCE) as first,
            open_client(
                url, clock, shared_breakers=breakers_of(store), patience=PATIENCE
            ) as second,
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
        open_client(
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
        open_client(
            f"http://{server.host}", clock, shared_breakers=breakers_of(store), patience=PATIENCE
        ) as client,
    ):
        with pytest.raises(RetryLater):
            await resolve(client)
        clock.shift = 61
        assert await gather_or_cancel(resolve(client) for _ in range(5)) == [False] * 5


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
        open_client(
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
        open_client(
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
        open_client(
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
