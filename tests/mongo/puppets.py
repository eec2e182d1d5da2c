"""Scripted servers on the loopback that answer a MongoDB client as a test requires."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import bson

Serve = Callable[[socket.socket], object]
"""What is done with a connection, in a thread of its own; at the end it is closed."""

OP_MSG = 2013


@contextmanager
def serving(serve: Serve) -> Iterator[str]:
    """Run a server within the context; yield its host and port."""
    connections: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def run(connection: socket.socket) -> None:
        with connection, suppress(OSError, EOFError):
            serve(connection)

    def accept() -> None:
        threads = []
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threads.append(threading.Thread(target=run, args=(connection,), daemon=True))
                threads[-1].start()
        for thread in threads:
            thread.join()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for open_socket in (listener, *connections):
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()


def answering(answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Serve:
    """Return a protocol that answers commands in MongoDB's protocol."""

    def serve(connection: socket.socket) -> None:
        while True:
            length, number, _, _ = struct.unpack("<iiii", _exactly(connection, 16))
            content = _exactly(connection, length - 16)
            body = bson.encode({"ok": 1.0, **answer(bson.decode(content[5:]))})
            header = struct.pack("<iiiiiB", 21 + len(body), 0, number, OP_MSG, 0, 0)
            connection.sendall(header + body)

    return serve


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = connection.recv(size - len(content))
        if not piece:
            raise EOFError
        content += piece
    return content
