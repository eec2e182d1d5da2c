"""The long way of the tests is as long, and as wide, as it says."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from tests.distance import RATE, ROUND_TRIP, Distance

TIMES = 4
SIZE = 32 << 20


@contextmanager
def connected(**changes: float) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give both ends of a connection over a distance."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Distance(server.getsockname()[1], **changes) as way,
        socket.create_connection(("127.0.0.1", way.port)) as near,
    ):
        far, _ = server.accept()
        with far:
            yield near, far


def drain(end: socket.socket) -> tuple[int, float]:
    """Return how many bytes come until the end, and when that was."""
    count = 0
    while data := end.recv(1 << 20):
        count += len(data)
    return count, time.monotonic()


def test_round_trip() -> None:
    """What goes there and back takes as long as it should."""
    with connected() as (near, far):
        taken = []
        for _ in range(TIMES):
            began = time.monotonic()
            near.sendall(b"?")
            assert far.recv(1) == b"?"
            there = time.monotonic() - began
            far.sendall(b"!")
            assert near.recv(1) == b"!"
            taken.append(time.monotonic() - began)
            assert ROUND_TRIP / 2 <= there < taken[-1]
    assert ROUND_TRIP <= min(taken) < 1.5 * ROUND_TRIP


@pytest.mark.parametrize("way", ["there", "back"])
def test_rate(way: str) -> None:
    """A stream is never faster than the link; its length does not make it slow."""
    content = os.urandom(SIZE)
    shares = []
    for _ in range(TIMES):
        with connected() as ends, ThreadPoolExecutor() as pool:
            source, target = ends if way == "there" else ends[::-1]
            drained = pool.submit(drain, target)
            began = time.monotonic()
            source.sendall(content)
            source.shutdown(socket.SHUT_WR)
            count, ended = drained.result()
        assert count == SIZE
        shares.append(SIZE / (ended - began - ROUND_TRIP / 2) / RATE)
    assert 0.7 < max(shares) < 1.02


def test_content() -> None:
    """What comes out is what went in, both ways at once, and each end is told its end."""
    there, back = os.urandom(3_000_001), os.urandom(2_000_003)
    with connected(round_trip=0.01) as (near, far), ThreadPoolExecutor() as pool:

        def exchange(end: socket.socket, content: bytes) -> bytes:
            sending = pool.submit(end.sendall, content)
            sending.add_done_callback(lambda _: end.shutdown(socket.SHUT_WR))
            return b"".join(iter(lambda: end.recv(1 << 20), b""))

        answers = pool.submit(exchange, near, there), pool.submit(exchange, far, back)
        assert [answer.result() for answer in answers] == [back, there]


def test_what_nobody_reads_waits_with_the_sender() -> None:
    """The way itself holds little of what is not taken at its other end."""
    with connected() as (near, _):
        near.settimeout(1)
        sent = 0
        with suppress(TimeoutError):
            while sent < 1 << 30:
                sent += near.send(bytes(1 << 20))
        assert sent < 128 << 20


def test_it_goes_with_its_parent() -> None:
    """When the test is done there is no process left."""
    with Distance(1) as way:
        pid = way.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
