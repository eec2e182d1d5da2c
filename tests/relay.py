"""A proxy in front of a registry that counts the bytes of one blob, and can hold them back."""

from __future__ import annotations

import re
import socketserver
import threading
from contextlib import suppress
from dataclasses import dataclass
from socket import SHUT_RDWR, create_connection, socket
from typing import Self

from shiftergw.model.images import Descriptor

_RANGE = re.compile(rb"\r\nrange: bytes=([0-9]+)-\r\n", re.IGNORECASE)
_PIECE = 64 << 10
_NO_LIMIT = 1 << 62


@dataclass
class BlobRequest:
    """A request for the blob from the byte `start`; `count` bytes of it were passed on."""

    start: int
    count: int = 0
    has_head: bool = False


class BlobRelay:
    """Forwards connections to `port` in threads; `requests` has those for `blob`.

    No byte of the blob at or behind `limit` is passed on.
    """

    def __init__(self, port: int, blob: Descriptor) -> None:
        """Listen on a free port."""
        self.blob = blob
        self.requests: list[BlobRequest] = []
        self.condition = threading.Condition()
        self.is_broken = False
        self._limit = _NO_LIMIT
        self._connections: set[_Connection] = set()
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError), create_connection(("127.0.0.1", port)) as server:
                    connection = _Connection(relay, self.request, server)
                    relay._connections.add(connection)
                    connection.run()
                    relay._connections.discard(connection)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        """Begin to forward."""
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        self.break_connections()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def limit(self) -> int:
        """Return the position in the blob at which its bytes are held back."""
        return self._limit

    @limit.setter
    def limit(self, position: int) -> None:
        with self.condition:
            self._limit = position
            self.condition.notify_all()

    def break_connections(self) -> None:
        """Close all connections now, and each later one at its first request, until `mend`."""
        self.is_broken = True
        for connection in tuple(self._connections):
            connection.close()

    def mend(self) -> None:
        """Forward connections again, without a limit."""
        self.is_broken = False
        self.limit = _NO_LIMIT


class _Connection:
    """One connection through the relay. Requests have no bodies and are not pipelined."""

    def __init__(self, relay: BlobRelay, client: socket, server: socket) -> None:
        self._relay = relay
        self._client = client
        self._server = server
        self._request: BlobRequest | None = None
        self._is_over = False

    def run(self) -> None:
        back = threading.Thread(target=self._pass_responses)
        back.start()
        with suppress(OSError):
            while (head := self._client.recv(_PIECE)) and not self._relay.is_broken:
                self._note(head)
                self._server.sendall(head)
        self.close()
        back.join()

    def close(self) -> None:
        with self._relay.condition:
            self._is_over = True
            self._relay.condition.notify_all()
        for side in (self._client, self._server):
            with suppress(OSError):
                side.shutdown(SHUT_RDWR)

    def _note(self, head: bytes) -> None:
        """Record a request for the blob; the heads of requests arrive in one piece."""
        self._request = None
        line = head.partition(b"\r\n")[0].decode()
        if line.startswith("GET ") and f"/blobs/{self._relay.blob.digest} " in line:
            start = _RANGE.search(head)
            self._request = BlobRequest(int(start[1]) if start else 0)
            self._relay.requests.append(self._request)

    def _pass_responses(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(_PIECE):
                self._pass(data)
        self.close()

    def _pass(self, data: bytes) -> None:
        request, rest = self._request, memoryview(data)
        if request is None:
            self._client.sendall(data)
            return
        if not request.has_head:
            end = data.find(b"\r\n\r\n") + 4
            request.has_head = end >= 4
            self._client.sendall(rest[:end] if request.has_head else rest)
            rest = rest[end:] if request.has_head else rest[:0]
        while rest:
            size = self._allow(request.start + request.count, len(rest))
            self._client.sendall(rest[:size])
            request.count += size
            rest = rest[size:]

    def _allow(self, position: int, size: int) -> int:
        """Return how many of `size` bytes at a position may be passed on, once there are some."""
        with self._relay.condition:
            self._relay.condition.wait_for(lambda: self._is_over or self._relay.limit > position)
            if self._is_over:
                raise ConnectionError
            return min(size, self._relay.limit - position)
