"""Serve requests of tests in a thread."""

from __future__ import annotations

from socketserver import BaseServer
from threading import Event, Thread
from typing import Self

POLL_SECONDS = 0.05


class ServerThread:
    """Serves by a server of `socketserver` while the context lasts, then closes the server.

    `BaseServer.shutdown` waits for ever if the thread ends before it serves: a whole run of the
    tests hung once for that. This class waits for the thread itself.
    """

    def __init__(self, server: BaseServer) -> None:
        """Prepare to serve by `server`, which listens already."""
        self._server = server
        self._stop = Event()
        self._thread = Thread(target=self._serve, name="server", daemon=True)

    def _serve(self) -> None:
        self._server.timeout = POLL_SECONDS
        while not self._stop.is_set():
            self._server.handle_request()

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self._stop.set()
        self._thread.join()
        self._server.server_close()
