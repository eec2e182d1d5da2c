"""Send the work of a system to clients as server-sent events (HTML, section 9.2).

A client whose connection is slow gets the newest state of each record, and nothing twice: what has
changed is noted by key, and rendered when it can be sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from shiftergw.errors import TooMany, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.service.redaction import may_see
from shiftergw.web.feed import Feed, WorkEntry, WorkReader

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

BATCH = 100
"""Events that are sent in one turn of the reactor."""

MOST_OF_USER = 25
"""Streams of one user; many jobs of a user may wait at the same time."""


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
class EventStream:
    """The events of one connection: listens to the feed, and produces for the transport."""

    def __init__(
        self,
        feed: Feed,
        session: Session,
        name: tuple[str, str] | None,
        clock: IReactorTime,
        on_close: Callable[[], None],
    ) -> None:
        """Send what the session may see; with `name` (type and tag), only work on that image."""
        self._feed = feed
        self._session = session
        self._name = name
        self._clock = clock
        self._on_close = on_close
        self._changes: dict[str, bool] = {}
        """Keys of records that have changed, and whether the client has seen them before."""
        self._request: EventRequest | None = None
        self._calls: dict[str, Any] = {}
        self._paused_at: float | None = None
        self._is_current = False
        self._is_closed = False

    def start(self, request: EventRequest) -> None:
        """Send events as the body of an answer whose head was sent."""
        self._request = request
        request.registerProducer(self, True)
        self._write(b"retry: %d\nevent: begin\ndata: {}\n\n" % RETRY_MILLISECONDS)
        self._calls["end"] = self._clock.callLater(STREAM_SECONDS, self.close)
        self._feed.add(self)

    def close(self) -> None:
        """End the answer, and free what the stream occupies; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for call in self._calls.values():
            if call.active():
                call.cancel()
        self._feed.remove(self)
        self._changes.clear()
        self._on_close()
        if self._request is not None:
            request, self._request = self._request, None
            request.unregisterProducer()
            request.finish()

    def abandon(self) -> None:
        """Free what the stream occupies after its client has gone."""
        self._request = None
        self.close()

    # The feed's `FeedListener`.

    def note(self, key: str, before: WorkEntry | None) -> None:
        """Note a change if the client sees the record, or has seen it."""
        was_visible = before is not None and self._may_see(before.record)
        entry = self._feed.entries.get(key)
        if was_visible or (entry is not None and self._may_see(entry.record)):
            self._changes.setdefault(key, was_visible)  # an unsent change keeps its value

    def end_round(self) -> None:
        """Send what was noted, as far as the client receives it."""
        if self._is_closed or self._paused_at is not None or "more" in self._calls:
            return
        events = list(self._next_events())
        if not self._changes and not self._is_current:
            self._is_current = True
            events.append(b"event: current\ndata: {}\n\n")
        if self._changes:
            self._calls["more"] = self._clock.callLater(0, self._go_on)
        if events:
            self._write(b"".join(events))

    def _go_on(self) -> None:
        del self._calls["more"]
        self.end_round()

    def _next_events(self) -> Iterator[bytes]:
        for key in list(self._changes)[:BATCH]:
            was_visible = self._changes.pop(key)
            entry = self._feed.entries.get(key)
            if entry is not None and self._may_see(entry.record):
                yield self._event(b"work", entry.row)
            elif was_visible:
                image = self._feed.end_of(key)
                if entry is None and image is not None and self._may_read(image.record):
                    yield self._event(b"end", image.row)
                else:
                    yield self._event(b"gone", b'{"key":"%s"}' % key.encode("ascii"))

    def _event(self, name: bytes, data: bytes) -> bytes:
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (self._feed.round, name, data)

    def _may_see(self, record: ImageRecord) -> bool:
        is_named = self._name is None or self._name == (record.itype, record.pulltag)
        return is_named and (self._session.admin or may_see(self._session, record))

    def _may_read(self, image: ImageRecord) -> bool:
        return self._session.admin or image.may_be_read_by(self._session)

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


class EventStreams:
    """Opens the streams of a site, within limits, and has one feed for each system."""

    def __init__(self, reader: WorkReader, clock: IReactorTime, limit: int) -> None:
        """Allow `limit` streams in all: each occupies a connection."""
        self._reader = reader
        self._clock = clock
        self._limit = limit
        self._feeds: dict[str, Feed] = {}
        self._users: Counter[int] = Counter()
        self._streams: dict[EventStream, None] = {}

    def open(self, session: Session, name: tuple[str, str] | None) -> EventStream:
        """Return a stream, which must be started or closed.

        Raises `TooMany` if the user has too many, and `Unavailable` if all users have.
        """
        uid = session.uid
        if self._users[uid] >= MOST_OF_USER:
            raise TooMany(
                f"You have {MOST_OF_USER} open event streams already.",
                remedy="Close some of them, or poll the pulls.",
            )
        if len(self._streams) >= self._limit:
            raise Unavailable("Too many streams of events are open.")
        feed = self._feeds.get(session.system)
        if feed is None:
            feed = self._feeds[session.system] = Feed(self._reader, session.system, self._clock)

        def forget() -> None:
            del self._streams[stream]
            self._users -= Counter([uid])

        stream = EventStream(feed, session, name, self._clock, forget)
        self._streams[stream] = None
        self._users[uid] += 1
        return stream

    def close(self) -> None:
        """End all streams."""
        for stream in list(self._streams):
            stream.close()
