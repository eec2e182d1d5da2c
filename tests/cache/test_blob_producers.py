"""Back-pressure: a source is paused while the disk is behind."""

from __future__ import annotations

import hashlib
from io import BytesIO

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.protocols.basic import FileSender

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.cache.blob_writer import MOST_WAITING
from shiftergw.errors import BlobCorrupt
from shiftergw.model.images import Descriptor, Digest
from shiftergw.ports import BlobSink
from tests.cache.downloads import BLOB, CONTENT, fetch_blob, ignore
from tests.installed_reactor import reactor


class Producer:
    """A producer that sends as fast as it may, and counts its pauses."""

    def __init__(self, sink: BlobSink, size: int, done: Deferred[None]) -> None:
        """Send `size` bytes of zeros to `sink`."""
        self._sink = sink
        self._remainder = size
        self._done = done
        self._is_paused = False
        self.pauses = 0

    def run(self) -> None:
        """Send until paused or done."""
        while self._remainder and not self._is_paused:
            self._remainder -= 65_536
            self._sink.write(b"\0" * 65_536)
        if not self._remainder:
            self._sink.unregisterProducer()
            self._done.callback(None)

    def pauseProducing(self) -> None:
        """Stop for now."""
        self._is_paused = True
        self.pauses += 1

    def resumeProducing(self) -> None:
        """Go on, in a later turn as a transport does."""
        self._is_paused = False
        reactor.callLater(0, self.run)


@pytest_twisted.ensureDeferred
async def test_fast_source_is_paused(cache: BlobFiles) -> None:
    """No more than a few MiB wait in memory, and the reactor's thread neither hashes nor writes."""
    size = 64 << 20
    blob = Descriptor(Digest("sha256", hashlib.sha256(b"\0" * size).hexdigest()), size)
    peak, bytes_sent, bytes_reported = 0, 0, 0
    pauses: list[int] = []

    def report(done: int) -> None:
        nonlocal bytes_reported
        bytes_reported = done

    async def fast(_: int, sink: BlobSink) -> None:
        class Counting:
            def __getattr__(self, name: str) -> object:
                return getattr(sink, name)

            def write(self, data: bytes) -> None:
                nonlocal peak, bytes_sent
                bytes_sent += len(data)
                peak = max(peak, bytes_sent - bytes_reported)
                sink.write(data)

        done: Deferred[None] = Deferred()
        producer = Producer(Counting(), size, done)  # type: ignore[arg-type]
        sink.registerProducer(producer, streaming=True)
        producer.run()
        await done
        pauses.append(producer.pauses)

    await fetch_blob(cache, blob, fast, report)
    assert pauses[0] > 3
    assert peak <= MOST_WAITING + 2 * 65_536


@pytest_twisted.ensureDeferred
async def test_producer_registered_while_much_waits(cache: BlobFiles) -> None:
    """A producer that takes over from a broken one is paused at once if the disk is behind."""
    content = b"\0" * (MOST_WAITING + 65_536)
    blob = Descriptor(Digest.of(content), len(content))

    async def takes_over(_: int, sink: BlobSink) -> None:
        sink.write(content[:-65_536] + b"\0")
        done: Deferred[None] = Deferred()
        producer = Producer(sink, 65_536, done)
        sink.registerProducer(producer, streaming=True)
        assert producer.pauses == 1
        sink.begin(len(content) - 65_536 + 1)
        with pytest.raises(BlobCorrupt):
            sink.write(b"\0" * 65_536)
        done.callback(None)

    with pytest.raises(BlobCorrupt):
        await fetch_blob(cache, blob, takes_over, ignore)


@pytest_twisted.ensureDeferred
async def test_pull_producer(cache: BlobFiles) -> None:
    """A file can be sent into the cache by Twisted's own sender, piece by piece."""

    async def file(_: int, sink: BlobSink) -> None:
        await FileSender().beginFileTransfer(BytesIO(CONTENT), sink)

    path = await fetch_blob(cache, BLOB, file, ignore)
    assert path.read_bytes() == CONTENT
