"""Which host of a system is used, by a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.delivery.hosts import ALL_SECONDS, HOST_SECONDS, SHUNNED_SECONDS, Connect, Hosts
from shiftergw.errors import DeliveryFailed
from shiftergw.plumbing.channel import Away

DOWN = Away("The system cannot be reached.", detail="refused")
UNKNOWN = DeliveryFailed("The system's host key is not known.", remedy="Add it.", detail="ed25519")


class Site:
    """Hosts a, b and c; each works unless `down` says why not, or `silent` that it hangs."""

    def __init__(self, *names: str) -> None:
        """Note which hosts are asked, in their order."""
        self.clock = Clock()
        self.down: dict[str, DeliveryFailed] = {}
        self.silent: set[str] = set()
        self.asked: list[str] = []
        ways = {name: self._way(name) for name in names or ("a", "b", "c")}
        self.hosts = Hosts(ways, self.clock)

    def _way(self, name: str) -> Connect:
        async def connect() -> Any:
            self.asked.append(name)
            if name in self.silent:
                await Deferred()
            if name in self.down:
                raise self.down[name]
            return name

        return connect

    def open(self) -> Deferred[str]:
        """Return the host that is found, once it is."""

        async def begin(connect: Connect) -> Any:
            return await connect()

        async def found() -> str:
            host, begun = await self.hosts.first(begin)
            assert begun == host
            return host

        self.asked.clear()
        return Deferred.fromCoroutine(found())


@pytest_twisted.ensureDeferred
async def test_the_one_that_worked_last() -> None:
    """The first host is used until it fails, and then the next one until that fails."""
    site = Site()
    assert await site.open() == "a"
    site.down["a"] = DOWN
    assert await site.open() == "b"
    assert site.asked == ["a", "b"]
    site.down.clear()
    site.clock.advance(10 * SHUNNED_SECONDS)
    assert await site.open() == "b"
    assert site.asked == ["b"]
    site.down["b"] = DOWN
    assert await site.open() == "a"
    assert site.asked == ["b", "a"]


@pytest_twisted.ensureDeferred
async def test_a_host_that_failed_comes_last() -> None:
    """For a while a host that failed is tried after the others, the latest last; never not."""
    site = Site()
    site.down.update(a=DOWN, b=DOWN, c=DOWN)
    with pytest.raises(DeliveryFailed):
        await site.open()
    site.clock.advance(1)
    del site.down["b"]
    assert await site.open() == "b"
    assert site.asked == ["a", "b"]
    site.down["b"] = DOWN
    site.clock.advance(1)
    with pytest.raises(DeliveryFailed):
        await site.open()
    assert site.asked == ["b", "c", "a"]
    site.clock.advance(SHUNNED_SECONDS)
    site.down.clear()
    assert await site.open() == "b"


@pytest_twisted.ensureDeferred
async def test_a_host_that_is_shunned() -> None:
    """A host that does no good though it can be reached is left for one that may work, if any."""
    site = Site()
    assert await site.open() == "a"
    site.hosts.shun("a")
    site.down["b"] = DOWN
    assert await site.open() == "c"
    assert site.asked == ["b", "c"]
    site.clock.advance(1)
    site.hosts.shun("c")
    site.down["a"] = DOWN
    assert await site.open() == "c"
    assert site.asked == ["a", "c"]
    site.hosts.shun("c")
    assert await site.open() == "c"
    assert site.asked == ["c"]


@pytest_twisted.ensureDeferred
async def test_a_clock_that_is_set_back() -> None:
    """Nobody is shunned for longer because the clock was wrong."""
    site = Site()
    site.clock.advance(1e6)
    assert await site.open() == "a"
    site.hosts.shun("a")
    site.clock.rightNow = 0.0
    assert await site.open() == "a"


@pytest.mark.parametrize(
    ("down", "what", "kind"),
    [
        ({"a": DOWN, "b": UNKNOWN, "c": DOWN}, UNKNOWN.what, Away),
        ({"a": DOWN, "b": DOWN, "c": DOWN}, DOWN.what, Away),
        ({"a": UNKNOWN, "b": UNKNOWN, "c": UNKNOWN}, UNKNOWN.what, DeliveryFailed),
    ],
)
@pytest_twisted.ensureDeferred
async def test_none_works(down: dict[str, DeliveryFailed], what: str, kind: type) -> None:
    """Users are told what somebody must mend, if that is it; admins the reason of each host."""
    site = Site()
    site.down = down
    with pytest.raises(DeliveryFailed) as caught:
        await site.open()
    assert caught.value.what == what
    assert type(caught.value) is kind
    reasons = caught.value.detail.split("; ")
    assert reasons == [f"{name}: {error.what} {error.detail}" for name, error in down.items()]


@pytest_twisted.ensureDeferred
async def test_the_only_host(log: list[str]) -> None:
    """Of a system with one host the error is the host's, and nobody is told twice."""
    site = Site("a")
    site.down["a"] = UNKNOWN
    for _ in range(2):
        with pytest.raises(DeliveryFailed) as caught:
            await site.open()
        assert caught.value is UNKNOWN
    assert log == []


def test_a_host_that_hangs() -> None:
    """A host has so long to be of use, and then it is the next one's turn."""
    site = Site()
    site.silent.add("a")
    opening = site.open()
    site.clock.advance(HOST_SECONDS - 1)
    assert site.asked == ["a"]
    assert not opening.called
    site.clock.advance(1)
    assert site.asked == ["a", "b"]
    assert opening.result == "b"
    assert site.clock.getDelayedCalls() == []


def test_all_hang() -> None:
    """The search ends after its limit, and the next one begins with those not tried."""
    names = "abcdef"
    site = Site(*names)
    site.silent.update(names)
    errors: list[Any] = []
    site.open().addErrback(lambda failure: errors.append(failure.value))
    for second in range(round(ALL_SECONDS)):
        assert errors == [], second
        site.clock.advance(1)
    (error,) = errors
    tried = "".join(site.asked)
    untried = names.removeprefix(tried)
    assert untried
    assert (error.what, type(error)) == ("The system does not answer.", Away)
    assert error.detail.endswith(f"no time was left for {', '.join(untried)}")
    again = site.open()
    assert site.asked == [untried[0]]
    again.addErrback(lambda _: None)
    again.cancel()


def test_cancelled() -> None:
    """A search that nobody waits for ends at once, and is held against no host."""
    site = Site()
    site.silent.add("a")
    opening = site.open()
    caught: list[Any] = []
    opening.addErrback(lambda failure: caught.append(failure.type))
    opening.cancel()
    assert caught == [CancelledError]
    assert site.asked == ["a"]
    assert site.clock.getDelayedCalls() == []
    site.silent.clear()
    assert site.open().result == "a"


@pytest_twisted.ensureDeferred
async def test_what_is_logged(log: list[str]) -> None:
    """The log tells each change of the host, and why a host cannot be used; not all the time."""
    site = Site("a", "b")
    site.down["a"] = UNKNOWN
    told = f"warn: a cannot be used: {UNKNOWN.what} {UNKNOWN.detail}"
    await site.open()
    assert log == [told, "info: b is the host that is used"]
    log.clear()
    await site.open()
    assert log == []
    site.down["b"] = DOWN
    for _ in range(3):
        with pytest.raises(DeliveryFailed):
            await site.open()
    assert log == [f"warn: b cannot be used: {DOWN.what} {DOWN.detail}"]
    log.clear()
    site.down["a"] = DOWN
    with pytest.raises(DeliveryFailed):
        await site.open()
    assert log == [f"warn: a cannot be used: {DOWN.what} {DOWN.detail}"]
    log.clear()
    site.clock.advance(SHUNNED_SECONDS)
    with pytest.raises(DeliveryFailed):
        await site.open()
    assert len(log) == 2
