"""Read the body of a response, with limits on its time and with back-pressure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from shiftergw.errors import RegistryUnavailable, amount
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.sources.registry.retry import Interruption, InterruptionKind, UnprovenEnd

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.web.iweb import IResponse


FREE_PIECES = 10_000
LEAST_PIECE = 64
"""Bytes that a piece of a body must have on average, once it has more than `FREE_PIECES`.

A piece, such as a chunk of HTTP, costs some microseconds whatever its size: 4 MiB in chunks of one
byte took 23 s of the processor.
"""

_TOO_LONG_REMEDY = (
    "Try again later; if it lasts, tell the site's support: `RegistryDocumentTime` is how long a"
    " registry may take."
)


@dataclass(frozen=True, slots=True)
class Pace:
    """Limits on the slowness of a body, in seconds and in bytes per second.

    `idle` is the longest time without a byte. In each `window` at least `rate` bytes per second
    must arrive; 0 is no limit. `total` limits the time of a whole document. A document that exceeds
    it is not tried again, because each try would occupy the worker as long.
    """

    idle: float
    rate: float = 0.0
    window: float = 60.0
    total: float | None = None


@implementer(IPushProducer)
class Body(Protocol):
    """Passes the pieces of a body to `take`, and fires `end` at its end.

    `end` fails with `Interruption` if the body breaks off or is slower than `pace`
    (`RegistryUnavailable` for a document), with `UnprovenEnd` if the connection was closed and no
    length was named before, and with the error that `take` raises. Time in which the body is paused
    counts towards `Pace.total` only. Cancelling `end` closes the connection. `subject` begins the
    sentence of an error.
    """

    def __init__(
        self, take: Callable[[bytes], object], clock: IReactorTime, pace: Pace, subject: str
    ) -> None:
        self.end: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self.proven: SharedResult[None] = SharedResult()
        """Kept at the end of the first window; after `end` has fired if that is earlier."""
        self.first_window: float | None = None
        """Seconds of the first window, if it is not as long as the others."""
        self._take = take
        self._clock = clock
        self._pace = pace
        self._subject = subject
        self._idle_call: Any = None
        self._window_call: Any = None
        self._total_call: Any = None
        self._began = 0.0
        self._byte_count = 0
        self._pieces = 0
        self._window_start = 0
        """How many bytes had been received when the window began."""
        self._is_paused = False
        self._done = False

    def read(self, response: IResponse) -> Deferred[None]:
        """Take the body of this response; return `end`."""
        response.deliverBody(self)
        # The response has just resumed what the taker had stopped or paused at its first bytes.
        if self._done:
            self._to_network("stopProducing")
        elif self._is_paused:
            self._to_network("pauseProducing")
        return self.end

    def connectionMade(self) -> None:
        self._began = self._clock.seconds()
        if not self._done:
            self._start_watch()
            if self._pace.total is not None:
                self._total_call = self._clock.callLater(self._pace.total, self._total_over)

    def dataReceived(self, data: bytes) -> None:
        if self._done:
            return
        self._byte_count += len(data)
        self._pieces += 1
        if self._pieces > FREE_PIECES and self._byte_count < self._pieces * LEAST_PIECE:
            what = f"{self._subject} sent {amount(self._byte_count)} in {self._pieces} pieces."
            self._fail(Failure(RegistryUnavailable(what)))
            return
        if self._idle_call is not None:
            self._idle_call.reset(self._pace.idle)
        try:
            self._take(data)
        except Exception:  # noqa: BLE001 - whatever the taker raises is the end of this body
            self._fail(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ResponseDone):
            if not self._done:
                self._finish()
                self.end.callback(None)
                self.proven.set_result(None)
        elif reason.check(PotentialDataLoss):
            self._fail(Failure(UnprovenEnd(self._subject)))
        else:
            self._fail(
                Failure(Interruption(f"{self._subject} broke off in the middle of a transfer."))
            )

    def pauseProducing(self) -> None:
        """Read no more from the network until `resumeProducing`."""
        self._is_paused = True
        self._stop_watch()
        self._to_network("pauseProducing")

    def resumeProducing(self) -> None:
        """Read on."""
        self._is_paused = False
        if not self._done:
            self._start_watch()
            self._to_network("resumeProducing")

    def stopProducing(self) -> None:
        """Close the connection; `end` fails with `CancelledError` if it had not fired."""
        self._fail(Failure(CancelledError()))

    def _to_network(self, method: str) -> None:
        if self.transport is not None:
            getattr(self.transport, method)()

    def _start_watch(self) -> None:
        if self._idle_call is None and not self._is_paused:
            self._idle_call = self._clock.callLater(self._pace.idle, self._idle_over)
            self._start_window()

    def _start_window(self) -> None:
        self._window_start = self._byte_count
        if self._pace.rate:
            window = self._pace.window
            if self.first_window is not None and not self.proven.is_set:
                window = self.first_window
            self._window_call = self._clock.callLater(window, self._window_over, window)

    def _stop_watch(self) -> None:
        for call in (self._idle_call, self._window_call):
            if call is not None:
                call.cancel()
        self._idle_call = self._window_call = None

    def _idle_over(self) -> None:
        self._idle_call = None
        self._fail(
            Failure(Interruption(f"{self._subject} sent nothing for {self._pace.idle:g} s."))
        )

    def _window_over(self, window: float) -> None:
        self._window_call = None
        byte_count = self._byte_count - self._window_start
        if byte_count < self._pace.rate * window:
            least = f"{amount(round(self._pace.rate))} a second are the least (`RegistryLeastRate`)"
            what = f"{self._describe_slowness(byte_count, window)}; {least}."
            self._fail(Failure(Interruption(what, kind=InterruptionKind.SLOW, why="too slow")))
        else:
            self.proven.set_result(None)
            if self._idle_call is not None and self._window_call is None:
                self._start_window()  # nobody has stopped, paused or resumed it

    def _total_over(self) -> None:
        self._total_call = None
        seconds = self._clock.seconds() - self._began
        what = f"{self._describe_slowness(self._byte_count, seconds)}."
        self._fail(Failure(RegistryUnavailable(what, remedy=_TOO_LONG_REMEDY)))

    def _describe_slowness(self, byte_count: int, seconds: float) -> str:
        return f"{self._subject} is too slow: it sent {amount(byte_count)} in {seconds:.0f} s"

    def _finish(self) -> None:
        self._done = True
        self._stop_watch()
        if self._total_call is not None:
            self._total_call.cancel()
            self._total_call = None

    def _fail(self, reason: Failure) -> None:
        if not self._done:
            self._finish()
            # Of what a response lends us this alone does not wait for the peer's farewell.
            self._to_network("stopProducing")
            self.end.errback(reason)
            self.proven.set_result(None)
