"""A wire to a server of the loopback that keeps all that goes over it."""

from __future__ import annotations

import socketserver
import threading
from contextlib import suppress
from socket import SHUT_RDWR, create_connection, socket
from typing import Self


class Wiretap:
    """Forwards connections to `port`, in threads of this process; `heard` has both directions."""

    def __init__(self, port: int) -> None:
        """Listen on a free port."""
        self.heard = bytearray()
        self._age = 0
        tap = self

        class Call(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError), create_connection(("127.0.0.1", port)) as server:
                    back = threading.Thread(target=tap._pass, args=(server, self.request))
                    back.start()
                    tap._pass(self.request, server)
                    back.join()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Call)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        """Forward."""
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more connections; those that are there end with their peers."""
        self._server.shutdown()
        self._server.socket.close()
        self._thread.join()

    def mute(self) -> None:
        """Swallow what comes on the connections there are, as a firewall that has lost them."""
        self._age += 1

    def _pass(self, source: socket, target: socket) -> None:
        age = self._age
        with suppress(OSError):
            while data := source.recv(65536):
                self.heard += data
                if age == self._age:
                    target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(SHUT_RDWR)
