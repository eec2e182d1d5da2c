"""Servers that answer with whatever bytes, in threads, and know how many of them were taken."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from twisted.internet.threads import deferToThread

SECONDS = 30.0
"""Limit on one read or write."""

Answer = Callable[[Callable[[bytes], None], bytes], object]
"""Sends what it likes, by its first argument, to a request whose head is its second one."""


class RawServer:
    """Gives each request on a port of the loopback to `answer`, then closes the connection.

    `sent` counts the bytes that the clients' sockets took; `heads` are the requests.
    """

    def __init__(self, answer: Answer) -> None:
        """Listen."""
        self.sent = 0
        self.heads: list[bytes] = []
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(SECONDS)

        def send(data: bytes) -> None:
            connection.sendall(data)
            self.sent += len(data)

        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (data := connection.recv(1 << 16)):
                head += data
            if head:
                self.heads.append(head)
                self._answer(send, head)

    def close(self) -> None:
        """Take no more connections, and return once those that were made have ended.

        In a thread, because the client that ends them needs the reactor.
        """
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), "a client left a connection open"


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[RawServer]:
    """Run a server; at the end all its connections have ended."""
    server = RawServer(answer)
    try:
        yield server
    finally:
        await deferToThread(server.close)


def endless(begin: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    """Return an answer that begins so, and repeats `piece` for as long as the client reads."""
    tick = threading.Event()

    def answer(send: Callable[[bytes], None], _: bytes) -> None:
        send(begin)
        while not tick.wait(pause):
            send(piece)

    return answer
