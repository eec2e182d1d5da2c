"""A proxy between a store and its MongoDB server that breaks where a test wants it to.

A database does not see whether a client's process has died, or only its connections. So a test of a
crash after a number of writes breaks the connections after them, for good.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Any, Self

import bson

WRITES = frozenset({"insert", "update", "delete", "findAndModify"})

WriteHook = Callable[[int, dict[str, Any]], None]
"""Called with the number of a write, from 1, and its command."""


class Wire:
    """Forward messages between clients and a server; count the writes among them.

    After `until` writes it breaks for good. The answers to write number `lost_answer`, and to the
    first command with the name `cut`, are not delivered: their connection breaks once instead. The
    answers to writes with numbers in `replication_timeouts` report a timeout of the replication.
    """

    def __init__(
        self,
        port: int,
        *,
        until: int | None = None,
        lost_answer: int = 0,
        cut: str = "",
        replication_timeouts: Container[int] = (),
        before_write: WriteHook | None = None,
        after_write: WriteHook | None = None,
    ) -> None:
        """Forward to `port` on the loopback."""
        self._port = port
        self._until = until
        self._lost_answer = lost_answer
        self._cut = cut
        self._replication_timeouts = replication_timeouts
        self._before_write = before_write
        self._after_write = after_write
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._is_broken = False
        self.writes = 0
        self.commands: list[str] = []

    def __enter__(self) -> Self:
        """Accept connections on a port of its own."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"mongodb://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Break all connections."""
        self._break()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        threads = []
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                thread.start()
                threads.append(thread)
        for thread in threads:
            thread.join()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            self._sockets += [client, server]
            with suppress(OSError, EOFError):
                while not self._is_broken:
                    self._forward(client, server)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        message = _message(client)
        command = bson.decode(message[21:])
        name = next(iter(command))
        number = 0
        with self._lock:
            self.commands.append(name)
            if name in WRITES:
                self.writes += 1
                number = self.writes
        if number and self._before_write is not None:
            self._before_write(number, command)
        if number and self._until is not None and number > self._until:
            self._break()
        server.sendall(message)
        answer = _message(server)
        if number and self._after_write is not None:
            self._after_write(number, command)
        if number in self._replication_timeouts:
            answer = _unconfirmed_answer(answer)
        if (number and number == self._lost_answer) or name == self._cut:
            self._cut = ""
            client.shutdown(socket.SHUT_RDWR)
        client.sendall(answer)

    def _break(self) -> None:
        self._is_broken = True
        for connection in list(self._sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _unconfirmed_answer(answer: bytes) -> bytes:
    """Return the answer to a write that was made, but not confirmed by most members."""
    error = {"code": 64, "errmsg": "waiting for replication timed out"}
    body = bson.encode({**bson.decode(answer[21:]), "writeConcernError": error})
    return (21 + len(body)).to_bytes(4, "little") + answer[4:21] + body


def _message(sender: socket.socket) -> bytes:
    header = _exactly(sender, 4)
    return header + _exactly(sender, int.from_bytes(header, "little") - 4)


def _exactly(sender: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = sender.recv(size - len(content))
        if not piece:
            raise EOFError
        content += piece
    return content
