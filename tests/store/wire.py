"""A wire between a store and its MongoDB server that breaks where a test wants it to.

For the database it makes no difference whether a client's process or its connections have died: a
crash after a number of writes is a wire that breaks then, and stays broken.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Any, Self

import bson

WRITES = frozenset({"insert", "update", "delete", "findAndModify"})

Seen = Callable[[int, dict[str, Any]], None]
"""Told of a write before it goes on, or once it is made: its number, from 1, and the command."""


class Wire:
    """Forwards what clients send to a server, message by message; counts the writes among it.

    After `until` writes it breaks for good. The answer to write number `lost`, and to the first
    command of the name `cut`, is never delivered: its connection breaks instead, once. The answers
    to writes whose numbers are `unsure` say that most members of a set may not have got them.
    """

    def __init__(
        self,
        port: int,
        *,
        until: int | None = None,
        lost: int = 0,
        cut: str = "",
        unsure: Container[int] = (),
        seen: Seen | None = None,
        made: Seen | None = None,
    ) -> None:
        """Lead to a port of the loopback."""
        self._port = port
        self._until = until
        self._lost = lost
        self._cut = cut
        self._unsure = unsure
        self._seen = seen
        self._made = made
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._broken = False
        self.writes = 0
        self.commands: list[str] = []

    def __enter__(self) -> Self:
        """Take connections on a port of its own."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"mongodb://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Break."""
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
                while not self._broken:
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
        if number and self._seen is not None:
            self._seen(number, command)
        if number and self._until is not None and number > self._until:
            self._break()
        server.sendall(message)
        answer = _message(server)
        if number and self._made is not None:
            self._made(number, command)
        if number in self._unsure:
            answer = _unsure(answer)
        if (number and number == self._lost) or name == self._cut:
            self._cut = ""
            client.shutdown(socket.SHUT_RDWR)
        client.sendall(answer)

    def _break(self) -> None:
        self._broken = True
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _unsure(answer: bytes) -> bytes:
    """Return the answer to a write that was made, and that a change of the primary may undo."""
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
