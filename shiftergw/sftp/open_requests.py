"""The requests of an SFTP session whose replies are due, and the limit on the wait for a reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred

from shiftergw.sftp import packets
from shiftergw.sftp.outgoing_file import CopiedRange, InFlightWrites
from shiftergw.sftp.packets import PacketBody, protocol_error

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

Reply = tuple[int, PacketBody]
"""The type and the body of a reply."""

_SMALLEST_COPY = 32 << 10
_LARGEST_COPY = 1 << 20


class WriteRequest(NamedTuple):
    """A request that writes a piece at `offset`; `name` is that of the request.

    It counts as `weight` bytes in flight. A copy is not on the line, so a long one counts less than
    its length; but short ones count more, because the number of requests is limited, too.
    """

    flight: InFlightWrites
    offset: int
    weight: int
    name: str

    @classmethod
    def of_piece(
        cls, flight: InFlightWrites, offset: int, piece: memoryview | CopiedRange
    ) -> WriteRequest:
        """Return the request for a piece of a file."""
        if isinstance(piece, CopiedRange):
            weight = min(max(len(piece), _SMALLEST_COPY), _LARGEST_COPY)
            return cls(flight, offset, weight, packets.COPY_DATA.decode())
        return cls(flight, offset, len(piece), packets.NAMES[packets.WRITE])


class OpenRequests:
    """Requests by their numbers. The greeting of the server is due first, without a number."""

    def __init__(
        self, clock: IReactorTime, idle_seconds: float, on_silence: Callable[[], None]
    ) -> None:
        """Call `on_silence` if replies are due and none arrives for `idle_seconds`."""
        self.greeting: Deferred[None] | None = None
        """Fires when the server has sent its version; None afterwards."""
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._on_silence = on_silence
        self._timer: Any = None
        self._is_ended = False
        self._number = 0
        self._requests: dict[int, Deferred[Reply] | WriteRequest | None] = {}
        self._patience: dict[int, float] = {}

    def add(self, request: Deferred[Reply] | WriteRequest, patience: float = 0) -> int:
        """Return the number for a request, whose reply may take `patience` seconds.

        That counts if it is longer than the idle limit.
        """
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._requests[self._number] = request
        if patience:
            self._patience[self._number] = patience
        if patience or self._timer is None:
            self.watch()
        return self._number

    def ignore(self, number: int) -> None:
        """Drop the reply to a request when it arrives: the caller was cancelled."""
        self._requests[number] = None

    def take(self, number: int) -> Deferred[Reply] | WriteRequest | None:
        """Return the request that a reply belongs to; None if the reply is ignored."""
        if number not in self._requests:
            raise protocol_error(f"an answer to request {number}, which was not made")
        self._patience.pop(number, None)
        return self._requests.pop(number)

    def watch(self) -> None:
        """Start, restart or stop the timer, depending on whether a reply is due."""
        if not self._is_ended and (self._requests or self.greeting is not None):
            seconds = max([self._idle_seconds, *self._patience.values()])
            if self._timer is None:
                self._timer = self._clock.callLater(seconds, self._expire)
            else:
                self._timer.reset(seconds)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self._on_silence()

    def end(self) -> list[Deferred[Any]]:
        """Stop the timer; return what callers wait for: the greeting, then replies."""
        self._is_ended = True
        requests, self._requests = self._requests, {}
        greeting, self.greeting = self.greeting, None
        self.watch()
        waiting = [greeting, *requests.values()]
        return [result for result in waiting if isinstance(result, Deferred)]
