"""Send the work of a system to clients as server-sent events.

A client whose connection is slow gets the newest state of each record, and nothing twice: what has
changed is noted by key, and rendered when it can be sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shiftergw.errors import TooMany, Unavailable
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.service.redaction import may_see
from shiftergw.web.event_connection import EventConnection
from shiftergw.web.feed import Feed, WorkEntry, WorkReader

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

BATCH = 100
"""Events that are sent in one turn of the reactor."""

MOST_OF_USER = 25
"""Streams of one user; many jobs of a user may wait at the same time."""


class EventStream(EventConnection):
    """The work that one client may see: listens to the feed of a system."""

    def __init__(
        self,
        feed: Feed,
        session: Session,
        name: tuple[str, str] | None,
        clock: IReactorTime,
        on_close: Callable[[], None],
    ) -> None:
        """Send what the session may see; with `name` (type and tag), only work on that image."""
        super().__init__(clock, on_close)
        self._feed = feed
        self._session = session
        self._name = name
        self._changes: dict[str, bool] = {}
        """Keys of records that have changed, and whether the client has seen them before."""
        self._is_current = False

    def subscribe(self) -> None:
        """See `EventConnection`."""
        self._feed.add(self)

    def unsubscribe(self) -> None:
        """See `EventConnection`."""
        self._feed.remove(self)
        self._changes.clear()

    def has_changes(self) -> bool:
        """See `EventConnection`."""
        return bool(self._changes)

    def next_events(self) -> Iterator[bytes]:
        """See `EventConnection`. After the first state is complete, an event says so."""
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
        if not self._changes and not self._is_current:
            self._is_current = True
            yield b"event: current\ndata: {}\n\n"

    def note(self, key: str, before: WorkEntry | None) -> None:
        """Note a change if the client sees the record, or has seen it; see `FeedListener`."""
        was_visible = before is not None and self._may_see(before.record)
        entry = self._feed.entries.get(key)
        if was_visible or (entry is not None and self._may_see(entry.record)):
            self._changes.setdefault(key, was_visible)  # an unsent change keeps its value

    def _event(self, name: bytes, data: bytes) -> bytes:
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (self._feed.round, name, data)

    def _may_see(self, record: ImageRecord) -> bool:
        is_named = self._name is None or self._name == (record.itype, record.pulltag)
        return is_named and (self._session.admin or may_see(self._session, record))

    def _may_read(self, image: ImageRecord) -> bool:
        return self._session.admin or image.may_be_read_by(self._session)


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
