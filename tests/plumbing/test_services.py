"""Services start one after the other and stop in the reverse order, whatever goes wrong."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.application.service import Service
from twisted.internet.defer import Deferred

from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.services import ClosedAtStop, OrderedServices


class Part(Service):
    """A service that writes down what it is told, and ends its start when the test says."""

    def __init__(self, name: str, told: list[str], *, stops_badly: bool = False) -> None:
        """Write into `told`."""
        self.setName(name)
        self.begun = Deferred[None]()
        self._told = told
        self._stops_badly = stops_badly

    def startService(self) -> Deferred[None]:
        """Note the start."""
        super().startService()
        self._told.append(f"start {self.name}")
        return self.begun

    def stopService(self) -> None:
        """Note the stop."""
        super().stopService()
        self._told.append(f"stop {self.name}")
        if self._stops_badly:
            raise RuntimeError("no")


def test_in_order_and_back() -> None:
    """Each starts once the one before has started; the last started stops first."""
    told: list[str] = []
    one, two = Part("one", told), Part("two", told)
    both = OrderedServices([one, two])
    starting = both.startService()
    assert told == ["start one"]
    one.begun.callback(None)
    assert told == ["start one", "start two"]
    two.begun.callback(None)
    assert starting.called
    assert both.stopService().called
    assert told[2:] == ["stop two", "stop one"]


@pytest_twisted.ensureDeferred
async def test_a_start_that_fails_stops_what_had_started() -> None:
    """The failure is passed on, and nothing goes on running."""
    told: list[str] = []
    one, two = Part("one", told), Part("two", told)
    starting = OrderedServices([one, two]).startService()
    one.begun.callback(None)
    two.begun.errback(ConfigurationError("wrong"))
    with pytest.raises(ConfigurationError):
        await starting
    assert told[2:] == ["stop two", "stop one"]


@pytest_twisted.ensureDeferred
async def test_a_stop_during_the_start_cancels_it() -> None:
    """Whoever is told to stop while he starts begins no further part."""
    told: list[str] = []
    one, two = Part("one", told), Part("two", told)
    both = OrderedServices([one, two])
    both.startService()
    await both.stopService()
    assert told == ["start one", "stop one"]


@pytest_twisted.ensureDeferred
async def test_one_that_cannot_stop_does_not_keep_the_others() -> None:
    """Every part is told to stop."""
    told: list[str] = []
    one, two = Part("one", told), Part("two", told, stops_badly=True)
    for part in (one, two):
        part.begun.callback(None)
    both = OrderedServices([one, two])
    await both.startService()
    await both.stopService()
    assert told[2:] == ["stop two", "stop one"]


@pytest_twisted.ensureDeferred
async def test_something_is_closed_at_the_stop() -> None:
    """What opens itself on use is closed once, when its service stops."""
    closed: list[bool] = []

    async def close() -> None:
        closed.append(True)

    service = ClosedAtStop(close)
    service.startService()
    assert closed == []
    await service.stopService()
    assert closed == [True]
