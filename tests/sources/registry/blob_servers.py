"""A registry and its object store that answer requests for one blob by a script, over TLS.

The registry wants a login and redirects to the store, as registries in clouds do. The downloads of
the client go into a real cache; bytes that it requests a second time are counted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.model.images import Descriptor, Digest, ResolvedImage
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import BlobSink
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.retry import Patience
from tests.certificates import Authority
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import PUBLIC, REACTOR, Network, open_client

CONTENT = bytes(range(256)) * 800
BLOB = Descriptor(Digest.of(CONTENT), len(CONTENT))
LOGIN = RegistryLogin("alice", "s3cret")
PATIENCE = Patience(tries=3, first=0.1, quick=1.0)
"""At most 0.2 seconds between quick tries."""

EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"

Step = Callable[[Ask], object]
"""Answers one request for the blob; returns None to have it answered correctly."""


def start_of(ask: Ask) -> int:
    """Return the offset of the first byte that a request wants."""
    return int((ask.header("Range") or "bytes=0-")[6:-1])


def status(code: int, body: bytes = b"", **fields: str) -> Step:
    """Answer with a status."""
    return lambda ask: ask.answer(code, body, **fields)


def redirect(url: str) -> Step:
    """Redirect to a URL of the store, in which `{port}` and `{path}` are replaced."""

    def answer(ask: Ask) -> object:
        port = ask.registry.host.rpartition(":")[2]
        return ask.answer(307, Location=url.format(port=port, path=f"/bucket/{BLOB.digest}"))

    return answer


def hang_up(ask: Ask) -> bool:
    """Close the connection after the bytes that were written.

    TLS does not close it while a producer is registered.
    """
    channel: Any = ask.request.channel
    channel.transport.unregisterProducer()
    channel.transport.loseConnection()
    return True


def correctly(_: Ask) -> object:
    """Leave the correct answer to the registry."""
    return None


def broken_after(
    size: int, *, reset: bool = False, hang: bool = False, whole: bool = False
) -> Step:
    """Send `size` bytes of the requested part, then close the connection, reset it, or hang.

    With `whole` they are the first bytes of the blob, whatever part is requested.
    """

    def answer(ask: Ask) -> object:
        start = 0 if whole else start_of(ask)
        fields = {"Content_Range": f"bytes {start}-{BLOB.size - 1}/{BLOB.size}"} if start else {}
        code = 206 if start else 200
        ask.begin(CONTENT[start : start + size], BLOB.size - start, code, **fields)
        if reset:
            REACTOR.callLater(0.1, ask.hang_up, reset=True)
            return True
        return True if hang else hang_up(ask)

    return answer


def without_length(size: int = BLOB.size, version: str = "1.0") -> Step:
    """Send `size` bytes of the requested part without a length, then close the connection."""

    def answer(ask: Ask) -> object:
        start = start_of(ask)
        head = f"HTTP/{version} 200 OK\r\nConnection: close\r\n\r\n"
        if start:
            head = (
                f"HTTP/{version} 206 Partial Content\r\nConnection: close\r\n"
                f"Content-Range: bytes {start}-{BLOB.size - 1}/{BLOB.size}\r\n\r\n"
            )
        channel: Any = ask.request.channel
        channel.transport.write(head.encode() + CONTENT[start : start + size])
        return hang_up(ask)

    return answer


def in_chunks(size: int = BLOB.size) -> Step:
    """Send `size` bytes in chunks; the last chunk follows only if that is the whole blob."""

    def answer(ask: Ask) -> object:
        ask.request.setResponseCode(200)
        for start in range(0, size, 10_000):
            ask.request.write(CONTENT[start : min(size, start + 10_000)])
        if size < BLOB.size:
            return hang_up(ask)
        ask.request.finish()
        return True

    return answer


class MeteredSink:
    """A sink that passes bytes on, and counts the correct bytes that it has passed on before."""

    def __init__(self, sink: BlobSink, meter: BlobServers, offset: int) -> None:
        """Write at `offset`."""
        self._sink = sink
        self._meter = meter
        self._position = offset
        self.registerProducer = sink.registerProducer
        self.unregisterProducer = sink.unregisterProducer

    @property
    def position(self) -> int:
        """Return the number of bytes in the sink."""
        return self._sink.position

    def begin(self, offset: int) -> None:
        """Continue at this offset."""
        self._sink.begin(offset)
        self._position = offset

    def write(self, data: bytes) -> None:
        """Pass bytes on."""
        self._sink.write(data)
        end = self._position + len(data)
        pairs = enumerate(zip(data, CONTENT[self._position : end], strict=False))
        right = next((number for number, (byte, good) in pairs if byte != good), len(data))
        self._meter.count(self._position, min(right, BLOB.size - self._position))
        self._position = end


class BlobServers:
    """The registry and the store with their scripts, and a client with its cache.

    `requests` has the server and the first byte of each request for the blob, such as `store 0`;
    `repeated_bytes` counts the right bytes that have arrived before.
    """

    def __init__(self, at_registry: Sequence[Step], at_store: Sequence[Step]) -> None:
        """Answer by these steps first, then correctly."""
        self.requests: list[str] = []
        self.repeated_bytes = 0
        self._is_there = bytearray(BLOB.size)
        self.registry = FakeRegistry(misbehave=self._registry_step)
        self.store = FakeRegistry(misbehave=self._store_step)
        self._at_registry = list(at_registry)
        self._at_store = list(at_store)
        self.client: RegistryClient
        self.cache: BlobFiles
        for server in (self.registry, self.store):
            server.blobs[str(BLOB.digest)] = CONTENT

    def count(self, position: int, size: int) -> None:
        """Count correct bytes that have arrived, or are on disk."""
        part = slice(position, position + size)
        self.repeated_bytes += sum(self._is_there[part])
        self._is_there[part] = b"\1" * size

    def _registry_step(self, ask: Ask) -> object:
        if ask.header("Authorization") is None:
            return ask.answer(401, WWW_Authenticate='Basic realm="test"')
        self.requests.append(f"registry {start_of(ask)}")
        ask.registry.host = self.store.host  # for `redirect`
        step = self._at_registry.pop(0) if self._at_registry else correctly
        signed_url = f"https://store.example:{{port}}{{path}}?signature={len(self.requests)}"
        return step(ask) or redirect(signed_url)(ask)

    def _store_step(self, ask: Ask) -> object:
        self.requests.append(f"store {start_of(ask)}")
        return self._at_store.pop(0)(ask) if self._at_store else None

    @asynccontextmanager
    async def running(
        self, authority: Authority, directory: Path, idle: float = 20.0
    ) -> AsyncIterator[None]:
        """Run both servers, the cache and a client."""
        names = ("registry.example", "store.example")
        threads = Threads(REACTOR, 2, "test")
        threads.startService()
        self.cache = BlobFiles(directory, threads, REACTOR)
        await self.registry.start(authority.options(*names))
        await self.store.start(authority.options(*names))
        port = self.registry.host.rpartition(":")[2]
        try:
            async with open_client(
                f"https://registry.example:{port}",
                Network({name: [PUBLIC] for name in names}),
                limits=Limits(header=20.0, idle=idle, rate=0),
                patience=PATIENCE,
                cacert=authority.pem,
            ) as self.client:
                yield
        finally:
            await self.registry.stop()
            await self.store.stop()
            await threads.stopService()

    async def fetch(self) -> bytes:
        """Return the blob from the cache, which downloads the missing bytes."""
        image = ResolvedImage(BLOB.digest, BLOB.digest, BLOB, (BLOB,), "test", "team/app", True)

        async def download(offset: int, sink: BlobSink) -> None:
            metered_sink = MeteredSink(sink, self, offset)
            await self.client.blob(image, BLOB, LOGIN, lambda _: None, offset, metered_sink)

        async with self.cache.get(BLOB, download, lambda _: None, lambda _: None) as path:
            return path.read_bytes()
