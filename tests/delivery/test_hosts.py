"""The choice of the host of a system, with a clock that the test advances."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.delivery.hosts import ALL_SECONDS, HOST_SECONDS, SHUNNED_SECONDS, Connect, Hosts
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import SystemUnavailable

DOWN = SystemUnavailable("The system cannot be reached.", detail="refused")
UNKNOWN = DeliveryFailed("The system's host key is not known.", remedy="Add it.", detail="ed25519")


class Site:
    """Hosts a, b and c; each works unless it has an entry in `errors` or in `silent_hosts`."""

    def __init__(self, *names: str) -> None:
        """Record the order in which hosts are tried."""
        self.clock = Clock()
        self.errors: dict[str, DeliveryFailed] = {}
        self.silent_hosts: set[str] = set()
        self.tried_hosts: list[str] = []
        connectors = {name: self._connector(name) for name in names or ("a", "b", "c")}
        self.hosts = Hosts(connectors, self.clock)

    def _connector(self, name: str) -> Connect:
        async def connect() -> Any:
            self.tried_hosts.append(name)
            if name in self.silent_hosts:
                await Deferred()
            if name in self.errors:
                raise self.errors[name]
            return name

        return connect

    def open(self) -> Deferred[str]:
        """Search for a host that works, and return it."""

        async def begin(connect: Connect) -> Any:
            return await connect()

        async def host_of_search() -> str:
            host, result = await self.hosts.first(begin)
            assert result == host
            return host

        self.tried_hosts.clear()
        return Deferred.fromCoroutine(host_of_search())


@pytest_twisted.ensureDeferred
async def test_the_host_that_worked_last() -> None:
    """The first host is used until it fails, then the next host until that fails."""
    site = Site()
    assert await site.open() == "a"
    site.errors["a"] = DOWN
    assert await site.open() == "b"
    assert site.tried_hosts == ["a", "b"]
    site.errors.clear()
    site.clock.advance(10 * SHUNNED_SECONDS)
    assert await site.open() == "b"
    assert site.tried_hosts == ["b"]
    site.errors["b"] = DOWN
    assert await site.open() == "a"
    assert site.tried_hosts == ["b", "a"]


@pytest_twisted.ensureDeferred
async def test_a_host_that_failed_comes_last() -> None:
    """A host that failed is tried after the others for a while, but it is always tried."""
    site = Site()
    site.errors.update(a=DOWN, b=DOWN, c=DOWN)
    with pytest.raises(DeliveryFailed):
        await site.open()
    site.clock.advance(1)
    del site.errors["b"]
    assert await site.open() == "b"
    assert site.tried_hosts == ["a", "b"]
    site.errors["b"] = DOWN
    site.clock.advance(1)
    with pytest.raises(DeliveryFailed):
        await site.open()
    assert site.tried_hosts == ["b", "c", "a"]
    site.clock.advance(SHUNNED_SECONDS)
    site.errors.clear()
    assert await site.open() == "b"


@pytest_twisted.ensureDeferred
async def test_a_host_that_is_shunned() -> None:
    """A shunned host is tried after hosts that may work, and before hosts that failed."""
    site = Site()
    assert await site.open() == "a"
    site.hosts.shun("a")
    site.errors["b"] = DOWN
    assert await site.open() == "c"
    assert site.tried_hosts == ["b", "c"]
    site.clock.advance(1)
    site.hosts.shun("c")
    site.errors["a"] = DOWN
    assert await site.open() == "c"
    assert site.tried_hosts == ["a", "c"]
    site.hosts.shun("c")
    assert await site.open() == "c"
    assert site.tried_hosts == ["c"]


@pytest_twisted.ensureDeferred
async def test_a_clock_that_is_set_back() -> None:
    """A host is not shunned for longer because the clock was set back."""
    site = Site()
    site.clock.advance(1e6)
    assert await site.open() == "a"
    site.hosts.shun("a")
    site.clock.rightNow = 0.0
    assert await site.open() == "a"


@pytest.mark.parametrize(
    ("errors", "what", "kind"),
    [
        ({"a": DOWN, "b": UNKNOWN, "c": DOWN}, UNKNOWN.what, SystemUnavailable),
        ({"a": DOWN, "b": DOWN, "c": DOWN}, DOWN.what, SystemUnavailable),
        ({"a": UNKNOWN, "b": UNKNOWN, "c": UNKNOWN}, UNKNOWN.what, DeliveryFailed),
    ],
)
@pytest_twisted.ensureDeferred
async def test_no_host_works(errors: dict[str, DeliveryFailed], what: str, kind: type) -> None:
    """Users see what an admin must fix, if anything; the detail has the reason of each host."""
    site = Site()
    site.errors = errors
    with pytest.raises(DeliveryFailed) as caught:
        await site.open()
    assert caught.value.what == what
    assert type(caught.value) is kind
    reasons = caught.value.detail.split("; ")
    assert reasons == [f"{name}: {error.what} {error.detail}" for name, error in errors.items()]


@pytest_twisted.ensureDeferred
async def test_the_only_host(log: list[str]) -> None:
    """A system with one host raises the error of the host and logs nothing."""
    site = Site("a")
    site.errors["a"] = UNKNOWN
    for _ in range(2):
        with pytest.raises(DeliveryFailed) as caught:
            await site.open()
        assert caught.value is UNKNOWN
    assert log == []


def test_a_host_that_hangs() -> None:
    """A host that hangs is given up after its time limit, and the next host is tried."""
    site = Site()
    site.silent_hosts.add("a")
    opening = site.open()
    site.clock.advance(HOST_SECONDS - 1)
    assert site.tried_hosts == ["a"]
    assert not opening.called
    site.clock.advance(1)
    assert site.tried_hosts == ["a", "b"]
    assert opening.result == "b"
    assert site.clock.getDelayedCalls() == []


def test_all_hang() -> None:
    """A search ends after its time limit, and the next search begins with the untried hosts."""
    names = "abcdef"
    site = Site(*names)
    site.silent_hosts.update(names)
    errors: list[Any] = []
    site.open().addErrback(lambda failure: errors.append(failure.value))
    for second in range(round(ALL_SECONDS)):
        assert errors == [], second
        site.clock.advance(1)
    (error,) = errors
    names_tried = "".join(site.tried_hosts)
    names_untried = names.removeprefix(names_tried)
    assert names_untried
    assert (error.what, type(error)) == ("The system does not answer.", SystemUnavailable)
    assert error.detail.endswith(f"no time was left for {', '.join(names_untried)}")
    search = site.open()
    assert site.tried_hosts == [names_untried[0]]
    search.addErrback(lambda _: None)
    search.cancel()


def test_cancelled() -> None:
    """A cancelled search ends at once and counts as a failure of no host."""
    site = Site()
    site.silent_hosts.add("a")
    opening = site.open()
    caught: list[Any] = []
    opening.addErrback(lambda failure: caught.append(failure.type))
    opening.cancel()
    assert caught == [CancelledError]
    assert site.tried_hosts == ["a"]
    assert site.clock.getDelayedCalls() == []
    site.silent_hosts.clear()
    assert site.open().result == "a"


@pytest_twisted.ensureDeferred
async def test_log_lines_about_hosts(log: list[str]) -> None:
    """The log has each change of the host, and once in a while why a host cannot be used."""
    site = Site("a", "b")
    site.errors["a"] = UNKNOWN
    warning = f"warn: a cannot be used: {UNKNOWN.what} {UNKNOWN.detail}"
    await site.open()
    assert log == [warning, "info: b is the host that is used"]
    log.clear()
    await site.open()
    assert log == []
    site.errors["b"] = DOWN
    for _ in range(3):
        with pytest.raises(DeliveryFailed):
            await site.open()
    assert log == [f"warn: b cannot be used: {DOWN.what} {DOWN.detail}"]
    log.clear()
    site.errors["a"] = DOWN
    with pytest.raises(DeliveryFailed):
        await site.open()
    assert log == [f"warn: a cannot be used: {DOWN.what} {DOWN.detail}"]
    log.clear()
    site.clock.advance(SHUNNED_SECONDS)
    with pytest.raises(DeliveryFailed):
        await site.open()
    assert len(log) == 2
