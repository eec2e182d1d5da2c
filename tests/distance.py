"""A long way for tests: a proxy on the loopback that delays what passes, and limits its rate.

It is a process of its own, so that what it costs is not counted as the tests'. Each direction takes
bytes at the link's rate, and lets them out half a round trip later: what the link does not take
waits with the sender. Bytes are those of the TCP stream, without headers.
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
"""Seconds there and back, unless another time is asked for."""

RATE = 125_000_000
"""Bytes a second, each way: 1 Gbit/s."""

_UNDER_WAY = 64 << 20  # bytes on their way in one direction, at most
_CHUNK = 256 << 10
_CATCH_UP = 0.2  # seconds of the link's time that a thread which woke late may make good
_START_SECONDS = 15.0


class Distance:
    """A way to a port of the loopback; `with Distance(port) as way` leads there from `way.port`."""

    def __init__(self, port: int, round_trip: float = ROUND_TRIP, rate: float = RATE) -> None:
        """Lead to this port; nothing runs yet."""
        self.port = 0
        self._numbers = (port, round_trip, rate)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        argv = [sys.executable, __file__, *map(str, self._numbers)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and every connection through it."""
        assert self._process is not None
        with self._process as process:
            process.terminate()
            process.wait(_START_SECONDS)

    @property
    def pid(self) -> int:
        """Return the number of its process."""
        assert self._process is not None
        return self._process.pid


class _Line:
    """What is on its way in one direction: bytes, and when they come out; None is the end."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._under_way = 0

    def put(self, due: float, data: bytes | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._under_way < _UNDER_WAY)
            self._queue.append((due, data))
            self._under_way += len(data or b"")
            self._changed.notify()

    def get(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue)
            due, data = self._queue.popleft()
        time.sleep(max(0.0, due - time.monotonic()))
        return data

    def delivered(self, count: int) -> None:
        with self._changed:
            self._under_way -= count
            self._changed.notify()


def _take(source: socket.socket, line: _Line, delay: float, rate: float) -> None:
    """Put what comes on the line, as fast as the link takes it."""
    taken = time.monotonic()  # when the link has taken all that came
    data = b"-"
    while data:
        data = _waiting(source)
        now = time.monotonic()
        if data:  # since the link was free: a link does not sleep when its thread does
            taken = max(taken, now - _CATCH_UP)
        else:
            data = _received(source)
            now = time.monotonic()
            taken = max(taken, now)
        taken += len(data) / rate
        line.put(max(taken, now) + delay, data or None)
        time.sleep(max(0.0, taken - time.monotonic()))


def _waiting(source: socket.socket) -> bytes:
    """Return what has come already."""
    try:
        return source.recv(_CHUNK, socket.MSG_DONTWAIT)
    except OSError:
        return b""


def _received(source: socket.socket) -> bytes:
    """Wait for what comes; nothing is the end."""
    try:
        return source.recv(_CHUNK)
    except OSError:
        return b""


def _deliver(line: _Line, target: socket.socket) -> None:
    """Send what comes out of the line; what nobody takes any more is lost."""
    while (data := line.get()) is not None:
        with suppress(OSError):
            target.sendall(data)
        line.delivered(len(data))
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _accept(listener: socket.socket, port: int, round_trip: float, rate: float) -> None:
    while True:
        near, _ = listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", port))
        except OSError:
            near.close()
            continue
        for source, target in ((near, far), (far, near)):
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = _Line()
            Thread(target=_take, args=(source, line, round_trip / 2, rate), daemon=True).start()
            Thread(target=_deliver, args=(line, target), daemon=True).start()


def main() -> None:
    """Say on which port it listens, and run until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("round_trip", type=float)
    parser.add_argument("rate", type=float)
    given = parser.parse_args()
    listener = socket.socket()
    # Little room here, also for the connections: what waits, waits with the sender.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    ways = (listener, given.port, given.round_trip, given.rate)
    Thread(target=_accept, args=ways, daemon=True).start()
    print(listener.getsockname()[1], flush=True)  # noqa: T201 - whoever started it reads it
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
