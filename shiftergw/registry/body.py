"""Takes the body of an answer as it comes: bounded, watched, and no faster than its taker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from zope.interface import implementer

from shiftergw.registry.retry import Interrupted

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.web.iweb import IResponse


@implementer(IPushProducer)
class Body(Protocol):
    """Gives every piece of a body to `take` until its end, which fires `ended`.

    `ended` fails with `Interrupted` where the body stops before its end, cannot be known to be
    whole, or gives no byte for `idle` seconds, and with whatever `take` raises. The time for which
    the taker pauses us does not count. Cancelling `ended` closes the connection. `who` begins the
    sentence of an error.
    """

    def __init__(
        self, take: Callable[[bytes], object], clock: IReactorTime, idle: float, who: str
    ) -> None:
        self.ended: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._take = take
        self._clock = clock
        self._idle = idle
        self._who = who
        self._watch: Any = None
        self._paused = False
        self._done = False

    def read(self, response: IResponse) -> Deferred[None]:
        """Take the body of this response; return `ended`."""
        response.deliverBody(self)
        # The response has just resumed what the taker had stopped or paused at its first bytes.
        if self._done:
            self._to_network("stopProducing")
        elif self._paused:
            self._to_network("pauseProducing")
        return self.ended

    def connectionMade(self) -> None:
        if not self._done:
            self._start_watch()

    def dataReceived(self, data: bytes) -> None:
        if self._done:
            return
        if self._watch is not None:
            self._watch.reset(self._idle)
        try:
            self._take(data)
        except Exception:  # noqa: BLE001 - whatever the taker raises is the end of this body
            self._fail(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ResponseDone):
            if not self._done:
                self._finish()
                self.ended.callback(None)
        else:
            self._fail(Failure(Interrupted(f"{self._who} broke off in the middle of a transfer.")))

    def pauseProducing(self) -> None:
        """Read no more from the network until `resumeProducing`."""
        self._paused = True
        self._stop_watch()
        self._to_network("pauseProducing")

    def resumeProducing(self) -> None:
        """Read on."""
        self._paused = False
        if not self._done:
            self._start_watch()
            self._to_network("resumeProducing")

    def stopProducing(self) -> None:
        """Close the connection; `ended` fails with `CancelledError` if it had not fired."""
        self._fail(Failure(CancelledError()))

    def _to_network(self, method: str) -> None:
        if self.transport is not None:
            getattr(self.transport, method)()

    def _start_watch(self) -> None:
        if self._watch is None and not self._paused:
            self._watch = self._clock.callLater(self._idle, self._stalled)

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _stalled(self) -> None:
        self._watch = None
        self._fail(Failure(Interrupted(f"{self._who} sent nothing for {self._idle:g} s.")))

    def _finish(self) -> None:
        self._done = True
        self._stop_watch()

    def _fail(self, reason: Failure) -> None:
        if not self._done:
            self._finish()
            # Of what a response lends us this alone does not wait for the peer's farewell.
            self._to_network("stopProducing")
            self.ended.errback(reason)
