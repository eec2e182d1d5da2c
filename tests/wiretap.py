"""A proxy to a server of the loopback that records all bytes."""

from __future__ import annotations

import socketserver
import threading
from contextlib import suppress
from socket import SHUT_RDWR, create_connection, socket

from tests.server_thread import ServerThread


class Wiretap(ServerThread):
    """Forwards connections to `port` in threads; `recording` has the bytes of both directions.

    When the context ends, no more connections are accepted; open ones end with their peers.
    """

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

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port: int = server.server_address[1]
        super().__init__(server)

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
