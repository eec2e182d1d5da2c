"""Services start in order and stop in reverse order, also after failures."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.application.service import Service
from twisted.internet.defer import Deferred

from shiftergw.errors import ConfigurationError
from shiftergw.plumbing.services import ClosedAtStop, OrderedServices, run_services


class Part(Service):
    """A service that records its events; the test ends its start."""

    def __init__(self, name: str, events: list[str], *, stops_badly: bool = False) -> None:
        """Record into `events`."""
        self.setName(name)
        self.start_result = Deferred[None]()
        self._events = events
        self._stops_badly = stops_badly

    def startService(self) -> Deferred[None]:
        """Record the start."""
        super().startService()
        self._events.append(f"start {self.name}")
        return self.start_result

    def stopService(self) -> None:
        """Record the stop."""
        super().stopService()
        self._events.append(f"stop {self.name}")
        if self._stops_badly:
            raise RuntimeError("no")


def test_start_and_stop_order() -> None:
    """Each service starts after the one before has started; the stop is in reverse order."""
    events: list[str] = []
    first, second = Part("one", events), Part("two", events)
    services = OrderedServices([first, second])
    starting = services.startService()
    assert events == ["start one"]
    first.start_result.callback(None)
    assert events == ["start one", "start two"]
    second.start_result.callback(None)
    assert starting.called
    assert services.stopService().called
    assert events[2:] == ["stop two", "stop one"]


@pytest_twisted.ensureDeferred
async def test_a_failed_start_stops_the_started_services() -> None:
    """The failure is passed on, and no service keeps running."""
    events: list[str] = []
    first, second = Part("one", events), Part("two", events)
    starting = OrderedServices([first, second]).startService()
    first.start_result.callback(None)
    second.start_result.errback(ConfigurationError("wrong"))
    with pytest.raises(ConfigurationError):
        await starting
    assert events[2:] == ["stop two", "stop one"]


@pytest_twisted.ensureDeferred
async def test_a_stop_during_the_start_cancels_it() -> None:
    """A stop during the start cancels it, and no further service starts."""
    events: list[str] = []
    first, second = Part("one", events), Part("two", events)
    services = OrderedServices([first, second])
    services.startService()
    await services.stopService()
    assert events == ["start one", "stop one"]


@pytest_twisted.ensureDeferred
async def test_a_failed_stop_does_not_prevent_other_stops() -> None:
    """Every service is stopped, even if one of them raises."""
    events: list[str] = []
    first, second = Part("one", events), Part("two", events, stops_badly=True)
    for part in (first, second):
        part.start_result.callback(None)
    services = OrderedServices([first, second])
    await services.startService()
    await services.stopService()
    assert events[2:] == ["stop two", "stop one"]


@pytest_twisted.ensureDeferred
async def test_services_run_during_a_context() -> None:
    """An error in the context is raised after all services have stopped, though one stops badly."""
    events: list[str] = []
    first, second = Part("one", events), Part("two", events, stops_badly=True)
    for part in (first, second):
        part.start_result.callback(None)

    async def use_services() -> None:
        async with run_services([first, second]):
            events.append("context")
            raise ConfigurationError("wrong")

    with pytest.raises(ConfigurationError):
        await use_services()
    assert events == ["start one", "start two", "context", "stop two", "stop one"]


@pytest_twisted.ensureDeferred
async def test_a_resource_is_closed_at_the_stop() -> None:
    """A resource is closed once, when its service stops."""
    close_calls: list[bool] = []

    async def close() -> None:
        close_calls.append(True)

    service = ClosedAtStop(close)
    service.startService()
    assert close_calls == []
    await service.stopService()
    assert close_calls == [True]
