"""Servers in threads: they answer, and end with their context in any case."""

from __future__ import annotations

import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.patience import patient
from tests.server_thread import ServerThread


class Answer(BaseHTTPRequestHandler):
    """Answers each request."""

    def do_GET(self) -> None:
        """Answer without a body."""
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class ShortServer(ThreadingHTTPServer):
    """Ends its thread before it serves."""

    def handle_request(self) -> None:
        """End the thread."""
        raise SystemExit


def test_requests_are_answered() -> None:
    """From the first to the last moment of the context; afterwards nobody listens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    with ServerThread(server):
        for _ in range(3):
            url = f"http://127.0.0.1:{server.server_port}/"
            assert urllib.request.urlopen(url, timeout=patient(10)).status == 204
    assert server.fileno() == -1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_early_is_not_waited_for() -> None:
    """The context ends at once."""

    def serve() -> None:
        with ServerThread(ShortServer(("127.0.0.1", 0), Answer)):
            pass

    thread = Thread(target=serve, daemon=True)
    thread.start()
    thread.join(patient(10))
    assert not thread.is_alive()
