"""The slow link of the tests has the round trip and the rate that it was given."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from tests.distance import RATE, ROUND_TRIP, Distance

MOST_TIMES = 40
"""Round trips, or streams, that are measured at most: on a busy machine most take longer."""

SIZE = 32 << 20


@contextmanager
def link_ends(**changes: float) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a connection over the link."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Distance(server.getsockname()[1], **changes) as way,
        socket.create_connection(("127.0.0.1", way.port)) as near_end,
    ):
        far_end, _ = server.accept()
        with far_end:
            yield near_end, far_end


def drain(end: socket.socket) -> tuple[int, float]:
    """Receive until the end; return the number of bytes and the time of the end."""
    count = 0
    while data := end.recv(1 << 20):
        count += len(data)
    return count, time.monotonic()


def test_round_trip() -> None:
    """A byte in each direction takes half a round trip, and both take a whole one."""
    with link_ends() as (near_end, far_end):
        times = []
        for _ in range(MOST_TIMES):
            begin = time.monotonic()
            near_end.sendall(b"?")
            assert far_end.recv(1) == b"?"
            one_way = time.monotonic() - begin
            far_end.sendall(b"!")
            assert near_end.recv(1) == b"!"
            times.append(time.monotonic() - begin)
            assert ROUND_TRIP / 2 <= one_way < times[-1]
            if times[-1] < 1.5 * ROUND_TRIP:
                break
    assert ROUND_TRIP <= min(times) < 1.5 * ROUND_TRIP


@pytest.mark.parametrize("way", ["there", "back"])
def test_rate(way: str) -> None:
    """A stream is never faster than the link, and the round trip does not slow it down."""
    content = os.urandom(SIZE)
    shares = []
    for _ in range(MOST_TIMES):
        with link_ends() as ends, ThreadPoolExecutor() as pool:
            source, target = ends if way == "there" else ends[::-1]
            draining = pool.submit(drain, target)
            begin = time.monotonic()
            source.sendall(content)
            source.shutdown(socket.SHUT_WR)
            count, end = draining.result()
        assert count == SIZE
        shares.append(SIZE / (end - begin - ROUND_TRIP / 2) / RATE)
        if shares[-1] > 0.7:
            break
    assert 0.7 < max(shares) < 1.02


def test_content() -> None:
    """The link carries all bytes and the end of each stream, in both directions at once."""
    request, response = os.urandom(3_000_001), os.urandom(2_000_003)
    with link_ends(round_trip=0.01) as (near_end, far_end), ThreadPoolExecutor() as pool:

        def exchange(end: socket.socket, content: bytes) -> bytes:
            sending = pool.submit(end.sendall, content)
            sending.add_done_callback(lambda _: end.shutdown(socket.SHUT_WR))
            return b"".join(iter(lambda: end.recv(1 << 20), b""))

        answers = pool.submit(exchange, near_end, request), pool.submit(exchange, far_end, response)
        assert [answer.result() for answer in answers] == [response, request]


def test_unread_data_waits_in_the_sender() -> None:
    """The link stores little of the data that its other end does not read."""
    with link_ends() as (near_end, _):
        near_end.settimeout(1)
        count = 0
        with suppress(TimeoutError):
            while count < 1 << 30:
                count += near_end.send(bytes(1 << 20))
        assert count < 128 << 20


def test_sent_bytes() -> None:
    """The link counts the bytes to the port, over all connections, and not those from it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Distance(server.getsockname()[1], round_trip=0.01) as way,
    ):
        assert way.sent_bytes() == 0
        for expected in (1000, 2000):
            with socket.create_connection(("127.0.0.1", way.port)) as near_end:
                far_end, _ = server.accept()
                with far_end:
                    near_end.sendall(bytes(1000))
                    near_end.shutdown(socket.SHUT_WR)
                    assert drain(far_end)[0] == 1000
                    far_end.sendall(bytes(500))
                    assert near_end.recv(1) == b"\0"
            assert way.sent_bytes() == expected


def test_the_link_ends_with_its_context() -> None:
    """The process of the link has ended when its context has."""
    with Distance(1) as way:
        pid = way.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
