"""One connection that receives server-sent events (HTML, section 9.2), whatever they tell.

A client whose connection is slow pauses its stream; a stream keeps what has changed meanwhile
instead of events, so its memory is bounded. A client that receives nothing at all is disconnected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

HEARTBEAT_SECONDS = 15.0
"""Seconds without an event after which a comment shows that the connection lives."""

STREAM_SECONDS = 300.0
"""Seconds after which a stream ends, and its client sends a new credential.

A munge credential is valid for as long, and so is what it says of its user's groups.
"""

STALL_SECONDS = 60.0
"""Seconds after which a client that receives nothing is disconnected."""

RETRY_MILLISECONDS = 2000
"""Milliseconds that a client waits before it connects again."""


class EventRequest(Protocol):
    """The request that a stream answers, as Twisted has it."""

    channel: Any

    def write(self, data: bytes) -> object:
        """Send bytes."""
        ...

    def finish(self) -> object:
        """End the answer."""
        ...

    def registerProducer(self, producer: object, streaming: bool) -> object:
        """Have `producer` paused while the client does not receive."""
        ...

    def unregisterProducer(self) -> object:
        """Forget the producer."""
        ...


@implementer(IPushProducer)
class EventConnection(ABC):
    """The events of one connection, which it produces for the transport.

    A subclass notes changes, and yields their events when they can be sent.
    """

    def __init__(self, clock: IReactorTime, on_close: Callable[[], object]) -> None:
        """Call `on_close` once, at the end."""
        self._clock = clock
        self._on_close = on_close
        self._request: EventRequest | None = None
        self._calls: dict[str, Any] = {}
        self._paused_at: float | None = None
        self._is_closed = False

    # What a subclass does.

    @abstractmethod
    def subscribe(self) -> None:
        """Begin to note changes."""

    @abstractmethod
    def unsubscribe(self) -> None:
        """Note no more changes, and forget those that were not sent."""

    @abstractmethod
    def has_changes(self) -> bool:
        """Return whether there are changes that were not sent."""

    @abstractmethod
    def next_events(self) -> Iterator[bytes]:
        """Yield the events of some of the changes, which then count as sent."""

    # What all streams do.

    def start(self, request: EventRequest) -> None:
        """Send events as the body of an answer whose head was sent."""
        self._request = request
        request.registerProducer(self, True)
        self._write(b"retry: %d\nevent: begin\ndata: {}\n\n" % RETRY_MILLISECONDS)
        self._calls["end"] = self._clock.callLater(STREAM_SECONDS, self.close)
        self.subscribe()

    def close(self) -> None:
        """End the answer, and free what the stream occupies; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for call in self._calls.values():
            if call.active():
                call.cancel()
        self.unsubscribe()
        self._on_close()
        if self._request is not None:
            request, self._request = self._request, None
            request.unregisterProducer()
            request.finish()

    def abandon(self) -> None:
        """Free what the stream occupies after its client has gone."""
        self._request = None
        self.close()

    def end_round(self) -> None:
        """Send what was noted, as far as the client receives it."""
        if self._is_closed or self._paused_at is not None or "more" in self._calls:
            return
        events = list(self.next_events())
        if self.has_changes():
            self._calls["more"] = self._clock.callLater(0, self._go_on)
        if events:
            self._write(b"".join(events))

    def _go_on(self) -> None:
        del self._calls["more"]
        self.end_round()

    def _write(self, data: bytes) -> None:
        assert self._request is not None
        beat = self._calls.get("beat")
        if beat is not None and beat.active():
            beat.reset(HEARTBEAT_SECONDS)
        else:
            self._calls["beat"] = self._clock.callLater(HEARTBEAT_SECONDS, self._beat)
        self._request.write(data)

    def _beat(self) -> None:
        """Show that the connection lives; end it if its client has received nothing for long."""
        if self._paused_at is None:
            self._write(b": alive\n\n")
            return
        self._calls["beat"] = self._clock.callLater(HEARTBEAT_SECONDS, self._beat)
        if self._clock.seconds() - self._paused_at >= STALL_SECONDS and self._request is not None:
            self._request.channel.forceAbortClient()

    # The transport's producer.

    def pauseProducing(self) -> None:
        """Keep changes until the client has received what was sent."""
        if self._paused_at is None:
            self._paused_at = self._clock.seconds()

    def resumeProducing(self) -> None:
        """Send what has changed meanwhile."""
        self._paused_at = None
        self.end_round()

    def stopProducing(self) -> None:
        """End: the client has gone."""
        self.abandon()
