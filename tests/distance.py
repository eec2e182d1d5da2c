"""A link with a long round trip for tests: a proxy on the loopback that delays and limits data.

It is a process of its own, so that its CPU time does not count as that of the tests. Each direction
accepts bytes at the rate of the link and delivers them half a round trip later; bytes beyond the
rate wait in the sender. Bytes are those of the TCP stream, without headers.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from threading import Condition, Thread
from typing import Self

ROUND_TRIP = 0.05
"""The default round trip in seconds."""

RATE = 125_000_000
"""Bytes a second, each way: 1 Gbit/s."""

_LINE_BYTES = 64 << 20  # bytes on their way in one direction, at most
_CHUNK = 256 << 10
_CATCH_UP = 0.2  # seconds of the link's time that a thread which woke late may make good
_START_SECONDS = 15.0


class Distance:
    """A slow link to a port; `with Distance(port) as link` starts it at `link.port`."""

    def __init__(self, port: int, round_trip: float = ROUND_TRIP, rate: float = RATE) -> None:
        """Make a link to a port; it starts when the context is entered."""
        self.port = 0
        self._numbers = (port, round_trip, rate)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the link."""
        argv = [sys.executable, __file__, *map(str, self._numbers)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        """End the link and every connection through it."""
        assert self._process is not None
        with self._process as process:
            process.terminate()
            process.wait(_START_SECONDS)

    @property
    def pid(self) -> int:
        """Return the process id of the link."""
        assert self._process is not None
        return self._process.pid

    def sent_bytes(self) -> int:
        """Return how many bytes the link has accepted on their way to the port."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


class _Line:
    """The data in flight in one direction, with delivery times; None is the end."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._in_flight = 0
        self.accepted_bytes = 0

    def put(self, due: float, data: bytes | None) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._in_flight < _LINE_BYTES)
            self._queue.append((due, data))
            self._in_flight += len(data or b"")
            self.accepted_bytes += len(data or b"")
            self._condition.notify()

    def get(self) -> bytes | None:
        with self._condition:
            self._condition.wait_for(lambda: self._queue)
            due, data = self._queue.popleft()
        time.sleep(max(0.0, due - time.monotonic()))
        return data

    def mark_delivered(self, count: int) -> None:
        with self._condition:
            self._in_flight -= count
            self._condition.notify()


def _take(source: socket.socket, line: _Line, delay: float, rate: float) -> None:
    """Move received data to the line at the rate of the link."""
    accepted_until = time.monotonic()  # when the link has accepted all received data
    data = b"-"
    while data:
        data = _arrived_data(source)
        now = time.monotonic()
        if data:  # data waited while this thread slept, so the link was busy
            accepted_until = max(accepted_until, now - _CATCH_UP)
        else:
            data = _wait_for_data(source)
            now = time.monotonic()
            accepted_until = max(accepted_until, now)
        accepted_until += len(data) / rate
        line.put(max(accepted_until, now) + delay, data or None)
        time.sleep(max(0.0, accepted_until - time.monotonic()))


def _arrived_data(source: socket.socket) -> bytes:
    """Return data that has already arrived."""
    try:
        return source.recv(_CHUNK, socket.MSG_DONTWAIT)
    except OSError:
        return b""


def _wait_for_data(source: socket.socket) -> bytes:
    """Wait for data; return b"" at the end."""
    try:
        return source.recv(_CHUNK)
    except OSError:
        return b""


def _deliver(line: _Line, target: socket.socket) -> None:
    """Send data from the line; drop it once the target is closed."""
    while (data := line.get()) is not None:
        with suppress(OSError):
            target.sendall(data)
        line.mark_delivered(len(data))
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _accept(
    listener: socket.socket, port: int, round_trip: float, rate: float, lines: list[_Line]
) -> None:
    """Accept connections; add their lines to the port to `lines`."""
    while True:
        source_socket, _ = listener.accept()
        try:
            target_socket = socket.create_connection(("127.0.0.1", port))
        except OSError:
            source_socket.close()
            continue
        for source, target in ((source_socket, target_socket), (target_socket, source_socket)):
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = _Line()
            if source is source_socket:
                lines.append(line)
            Thread(target=_take, args=(source, line, round_trip / 2, rate), daemon=True).start()
            Thread(target=_deliver, args=(line, target), daemon=True).start()


def main() -> None:
    """Print the port, then for each line of the standard input how many bytes were sent to it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("round_trip", type=float)
    parser.add_argument("rate", type=float)
    arguments = parser.parse_args()
    listener = socket.socket()
    # Small buffers, also for connections, so that waiting data stays in the sender.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    lines: list[_Line] = []
    ways = (listener, arguments.port, arguments.round_trip, arguments.rate, lines)
    Thread(target=_accept, args=ways, daemon=True).start()
    print(listener.getsockname()[1], flush=True)  # noqa: T201 - the parent reads it
    for _ in sys.stdin.buffer:
        print(sum(line.accepted_bytes for line in lines), flush=True)  # noqa: T201 - as above


if __name__ == "__main__":
    main()
