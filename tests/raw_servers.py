"""Servers in threads on the loopback, such as one that answers with arbitrary bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TypeVar

from twisted.internet.threads import deferToThread

SECONDS = 30.0
"""Time limit of one read or write, in seconds."""

Answer = Callable[[Callable[[bytes], None], bytes], object]
"""A function that answers a request: it gets a function that sends bytes, and the head."""


class ThreadedServer:
    """Serve each connection to a port of the loopback in its own thread."""

    def __init__(self) -> None:
        """Listen on a free port."""
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                connection.settimeout(SECONDS)
                thread = threading.Thread(target=self.serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def serve(self, connection: socket.socket) -> None:
        """Serve a connection and close it."""
        raise NotImplementedError

    def close(self) -> None:
        """Accept no more connections; return once the open ones have ended.

        Call it in a thread, because the client that ends them needs the reactor.
        """
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), "a client left a connection open"


class RawServer(ThreadedServer):
    """A server that calls `answer` with each request, then closes the connection.

    `bytes_sent` counts the bytes that the clients' sockets took; `heads` are the requests.
    """

    def __init__(self, answer: Answer) -> None:
        """Listen."""
        self.bytes_sent = 0
        self.heads: list[bytes] = []
        self._answer = answer
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        """Read the head of a request and answer it."""

        def send(data: bytes) -> None:
            connection.sendall(data)
            self.bytes_sent += len(data)

        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (data := connection.recv(1 << 16)):
                head += data
            if head:
                self.heads.append(head)
                self._answer(send, head)


Server = TypeVar("Server", bound=ThreadedServer)


@asynccontextmanager
async def closing_server(server: Server) -> AsyncIterator[Server]:
    """Close a server at the end, after its connections have ended."""
    try:
        yield server
    finally:
        await deferToThread(server.close)


def answering(answer: Answer) -> AbstractAsyncContextManager[RawServer]:
    """Run a server that calls `answer` with each request."""
    return closing_server(RawServer(answer))


def endless(begin: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    """Return an answer that sends `begin`, then `piece` for as long as the client reads."""
    tick = threading.Event()

    def answer(send: Callable[[bytes], None], _: bytes) -> None:
        send(begin)
        while not tick.wait(pause):
            send(piece)

    return answer
