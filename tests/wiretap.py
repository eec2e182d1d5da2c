"""A proxy to a server of the loopback that records all bytes."""

from __future__ import annotations

import socketserver
import threading
from contextlib import suppress
from socket import SHUT_RDWR, create_connection, socket
from typing import Self

from tests.server_thread import ServerThread


class Wiretap:
    """Forward connections to `port` in threads; `recording` has the bytes of both directions."""

    def __init__(self, port: int) -> None:
        """Listen on a free port."""
        self.recording = bytearray()
        self._generation = 0
        tap = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError), create_connection(("127.0.0.1", port)) as server:
                    back = threading.Thread(target=tap._pass, args=(server, self.request))
                    back.start()
                    tap._pass(self.request, server)
                    back.join()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        """Begin to forward."""
        self._thread = ServerThread(self._server)
        self._thread.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Accept no more connections; open ones end with their peers."""
        self._thread.__exit__()

    def mute(self) -> None:
        """Drop all bytes of open connections, as a firewall does that has forgotten them."""
        self._generation += 1

    def _pass(self, source: socket, target: socket) -> None:
        generation = self._generation
        with suppress(OSError):
            while data := source.recv(65536):
                self.recording += data
                if generation == self._generation:
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(SHUT_RDWR)
