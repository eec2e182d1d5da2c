"""The service manager learns when the gateway is ready, that it lives, and when it stops."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from shiftergw.app.supervision import CHECK_SECONDS, STORE_TIMEOUT_SECONDS, Supervision
from shiftergw.errors import Unavailable
from tests.notify_socket import NotifySocket

LISTENING = "Listening on tcp:5000"


class FakeStore:
    """A store that works, fails with `error`, or hangs until `answer` fires."""

    error: Exception | None = None
    answer: Deferred[None] | None = None

    async def ready(self) -> None:
        """Return if the store works."""
        if self.answer is not None:
            await self.answer
        if self.error is not None:
            raise self.error


def supervision_of(store: FakeStore, environ: Mapping[str, str], clock: Clock) -> Supervision:
    """Return the supervision of a gateway."""
    return Supervision(environ, store.ready, ["tcp:5000"], clock)


def test_ready_once_the_store_answers() -> None:
    """The gateway is ready at the first answer; the status says when the store fails."""
    store, clock = FakeStore(), Clock()
    store.error = Unavailable("The database is away.")
    with NotifySocket() as manager:
        service = supervision_of(store, manager.env, clock)
        service.startService()
        (report,) = manager.reports()
        assert report == {"STATUS": f"{LISTENING}; waiting for the store: The database is away."}
        store.error = None
        clock.advance(CHECK_SECONDS)
        assert manager.reports() == [{"READY": "1", "STATUS": LISTENING}]
        store.answer = Deferred()
        clock.advance(CHECK_SECONDS)
        clock.advance(STORE_TIMEOUT_SECONDS)
        (report,) = manager.reports()
        assert "waiting for the store: The database does not answer." in report["STATUS"]
        service.stopService()
        assert manager.reports() == [{"STOPPING": "1", "STATUS": "Stopping"}]
    assert clock.getDelayedCalls() == []


def test_signs_of_life() -> None:
    """The reactor gives a sign of life at half of the watchdog's limit until the stop."""
    clock = Clock()
    with NotifySocket(watchdog_seconds=4) as manager:
        service = supervision_of(FakeStore(), manager.env, clock)
        service.startService()
        manager.reports()
        clock.advance(2)
        assert manager.reports() == [{"WATCHDOG": "1"}]
        clock.advance(1.9)
        assert manager.reports() == []
        clock.advance(0.1)
        assert manager.reports() == [{"WATCHDOG": "1"}]
        service.stopService()
        manager.reports()
        clock.advance(60)
        assert manager.reports() == []


def test_a_stop_before_the_gateway_is_ready() -> None:
    """An answer of the store after the stop began does not report a ready gateway."""
    store, clock = FakeStore(), Clock()
    store.answer = Deferred()
    with NotifySocket() as manager:
        service = supervision_of(store, manager.env, clock)
        service.startService()
        stopping = service.stopService()
        store.answer.callback(None)
        assert stopping is not None
        assert stopping.called
        assert manager.reports() == [{"STOPPING": "1", "STATUS": "Stopping"}]


def test_a_manager_that_is_gone() -> None:
    """A report that cannot be sent is logged, and the gateway goes on."""
    clock = Clock()
    with NotifySocket() as manager:
        env = manager.env
    service = supervision_of(FakeStore(), env, clock)
    with capturedLogs() as events:
        service.startService()
        service.stopService()
    assert {event["log_format"] for event in events} == {
        "the service manager cannot be reached at $NOTIFY_SOCKET: {error}"
    }


def test_without_a_manager() -> None:
    """A gateway that no manager has started reports nothing and has no timers."""
    clock = Clock()
    service = supervision_of(FakeStore(), {}, clock)
    service.startService()
    assert clock.getDelayedCalls() == []
    assert service.stopService() is None
