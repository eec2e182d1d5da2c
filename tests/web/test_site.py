"""The HTTP server with real sockets and raw bytes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, globalLogPublisher

from shiftergw.web import site as site_module
from shiftergw.web.channel import HEAD_LIMIT, IDLE_LIMIT
from shiftergw.web.site import BODY_LIMIT
from shiftergw.web.spool import MOST_IN_MEMORY
from tests.matrices import examples
from tests.patience import patient
from tests.thread_pools import running_threads
from tests.web.fakes import READY, FakeGateway, Reply, Wire, listening, site_of

HEAD = b"POST /api/pull/mycluster/docker/x/ HTTP/1.1\r\nauthentication:good:ann\r\n"


def _until_closed(connection: socket.socket) -> bytes:
    answer = b""
    while data := connection.recv(65536):
        answer += data
    return answer


def _talk(port: int, data: bytes, *, stubborn: bool = False) -> bytes:
    """Send all bytes without reading, then return all bytes that arrive; `stubborn` half-closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=patient(10)) as connection:
        connection.sendall(data)
        if stubborn:
            connection.shutdown(socket.SHUT_WR)
        return _until_closed(connection)


async def _exchange(talk: Callable[[int], Any]) -> Any:
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    async with listening(site_of(FakeGateway(), reactor)) as port:
        return await deferToThread(talk, port)


def _only_reply(answer: bytes) -> Reply:
    reply, rest = Reply.parse(answer)
    assert rest == b""
    return reply


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad name: x\r\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(600)) + b"\r\n",
    ],
)
@pytest_twisted.ensureDeferred
async def test_malformed_requests_get_a_400(data: bytes) -> None:
    """Malformed lines, headers, lengths and chunks get a 400 in JSON, and the connection ends."""
    reply = _only_reply(await _exchange(lambda port: _talk(port, data)))
    assert (reply.status, reply.json["code"]) == (400, "bad-request")
    assert reply.headers["connection"] == "close"
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"x" * (HEAD_LIMIT + 10) + b" HTTP/1.1\r\n\r\n",
        b"x" * (4 * HEAD_LIMIT),
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: %s\r\n" % (n, b"y" * 9000) for n in range(9)),
        b"GET / HTTP/1.1\r\nX: y\r\n" + b" \r\n" * (HEAD_LIMIT // 2) + b"\r\n",
        HEAD + b"Content-Length: %d\r\n\r\n" % (BODY_LIMIT + 1),
        HEAD + b"Content-Length: 99999999999\r\n\r\n" + b"x" * 2_000_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"4000\r\n%s\r\n" % (b"x" * 0x4000) * 9,
    ],
)
@pytest_twisted.ensureDeferred
async def test_large_requests_get_a_413(data: bytes) -> None:
    """A head or body over 64 KiB gets a 413, which arrives although its sender still sends."""
    reply = _only_reply(await _exchange(lambda port: _talk(port, data)))
    assert (reply.status, reply.json["code"]) == (413, "too-large")


@pytest_twisted.ensureDeferred
async def test_a_head_just_within_the_limit() -> None:
    """A header of 60 KiB, which can have all logins of a user, is read."""
    credential = b"good:" + b"a" * 60_000
    data = b"GET /api/list/mycluster/ HTTP/1.0\r\nauthentication:%s\r\n\r\n" % credential
    assert _only_reply(await _exchange(lambda port: _talk(port, data))).status == 200


@pytest_twisted.ensureDeferred
async def test_a_body_just_within_the_limit() -> None:
    """A body of 64 KiB is read, whole or in chunks."""
    body = b" " * (BODY_LIMIT - 2) + b"{}"
    whole = b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    chunks = b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
        len(body),
        body,
    )
    for data in (whole, chunks):
        assert _only_reply(await _exchange(partial(_talk, data=HEAD + data))).status == 200


@pytest_twisted.ensureDeferred
async def test_a_client_that_asks_first_is_refused_before_it_sends() -> None:
    """With `Expect: 100-continue` a 413 is sent instead of the 100."""
    data = HEAD + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
    assert (await _exchange(lambda port: _talk(port, data))).startswith(b"HTTP/1.1 413 ")


@pytest_twisted.ensureDeferred
async def test_a_client_that_asks_first_is_invited() -> None:
    """A body within the limit gets a 100, and is read."""

    def talk(port: int) -> tuple[bytes, bytes]:
        with socket.create_connection(("127.0.0.1", port), timeout=patient(10)) as connection:
            connection.sendall(
                HEAD + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
            )
            invitation = connection.recv(100)
            connection.sendall(b"{}")
            return invitation, _until_closed(connection)

    invitation, answer = await _exchange(talk)
    assert invitation == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert _only_reply(answer).status == 200


@pytest_twisted.ensureDeferred
async def test_http_1_0() -> None:
    """An HTTP/1.0 client gets an answer with a length, and the connection ends."""
    answer = await _exchange(lambda port: _talk(port, b"GET /livez HTTP/1.0\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert _only_reply(answer).body == b"alive"


@pytest_twisted.ensureDeferred
async def test_a_request_byte_by_byte() -> None:
    """A request that arrives byte by byte is answered."""

    def talk(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=patient(10)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}":
                connection.sendall(bytes([byte]))
                time.sleep(0.0005)
            return _until_closed(connection)

    assert _only_reply(await _exchange(talk)).status == 200


@pytest_twisted.ensureDeferred
async def test_many_requests_sent_ahead() -> None:
    """A hundred requests in one write get a hundred answers."""
    data = b"GET /livez HTTP/1.1\r\n\r\n" * 99 + b"GET /livez HTTP/1.0\r\n\r\n"
    rest = await _exchange(lambda port: _talk(port, data))
    for _ in range(100):
        reply, rest = Reply.parse(rest)
        assert reply.body == b"alive"
    assert rest == b""


LONG = 3000
"""Records that make a list of some megabytes."""

LIST = b"/api/list/mycluster/ HTTP/1.1\r\nauthentication:good:ann\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def long_list(clock: Any = None) -> AsyncIterator[int]:
    """Serve a list that is too long to be kept in memory."""
    from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

    async with running_threads(1) as threads:
        images = [
            replace(READY, id=f"{number:064x}", env=("X=" + "y" * 1000,)) for number in range(LONG)
        ]
        site = site_of(FakeGateway(images=images), clock or reactor, threads.run)
        async with listening(site) as port:
            yield port


@pytest_twisted.ensureDeferred
async def test_a_list_of_any_length() -> None:
    """A list arrives complete and in order, with its length, as clients need it, also for HEAD."""
    async with long_list() as port:
        full = _only_reply(await deferToThread(_talk, port, b"GET " + LIST))
        head = await deferToThread(_talk, port, b"HEAD " + LIST)
    assert [int(image["id"], 16) for image in full.json["list"]] == [*range(LONG)]
    assert len(full.body) > MOST_IN_MEMORY
    head_reply, rest = Reply.parse(head, "HEAD")
    assert (rest, head_reply.headers["content-length"]) == (b"", str(len(full.body)))


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_is_cut_off() -> None:
    """A client has a minute to read each piece of a long list; then the connection is closed."""
    clock = Clock()
    async with long_list(clock) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=patient(10)) as connection:
            connection.sendall(b"GET " + LIST)
            size = len(await deferToThread(connection.recv, 1000))
            clock.advance(IDLE_LIMIT + 1)
            with suppress(ConnectionResetError):
                size += len(await deferToThread(_until_closed, connection))
    assert size < LONG * 1000


@pytest_twisted.ensureDeferred
async def test_a_client_that_hangs_up_in_a_list() -> None:
    """The client leaves nothing behind, and other clients are served."""
    async with long_list() as port:
        with socket.create_connection(("127.0.0.1", port), timeout=patient(10)) as connection:
            connection.sendall(b"GET " + LIST)
            await deferToThread(connection.recv, 1000)
        assert _only_reply(await deferToThread(_talk, port, b"GET " + LIST)).status == 200


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_too_slowly_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long list has a total time limit, so a slow reader occupies memory only for a while."""
    monkeypatch.setattr(site_module, "LEAST_RATE", 1 << 30)  # so a minute for all of it
    clock = Clock()
    async with long_list(clock) as port:
        with socket.socket() as connection:
            # Otherwise the buffers of the machine take the whole list.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(patient(10))
            connection.connect(("127.0.0.1", port))
            connection.sendall(b"GET " + LIST)
            size = 0
            with suppress(ConnectionResetError):
                while data := await deferToThread(connection.recv, 1 << 16):
                    size += len(data)
                    clock.advance(IDLE_LIMIT / 20)
    assert size < LONG * 1000


@pytest_twisted.ensureDeferred
async def test_a_request_that_breaks_off_leaves_nothing_behind() -> None:
    """A connection that closes within a request gets no answer, and leaves nothing behind."""
    data = HEAD + b"Content-Length: 10\r\n\r\n{"
    assert await _exchange(lambda port: _talk(port, data, stubborn=True)) == b""


@pytest_twisted.ensureDeferred
async def test_the_connection_serves_on_after_an_error() -> None:
    """A 404 and a 401 do not end the connection."""
    data = (
        b"GET /none HTTP/1.1\r\n\r\n"
        b"GET /api/list/mycluster/ HTTP/1.1\r\n\r\n"
        b"GET /livez HTTP/1.0\r\n\r\n"
    )
    rest = await _exchange(lambda port: _talk(port, data))
    statuses = []
    for _ in range(3):
        reply, rest = Reply.parse(rest)
        statuses.append(reply.status)
    assert statuses == [404, 401, 200]


def test_a_silent_connection_ends() -> None:
    """After a minute without a further request the gateway hangs up."""
    clock = Clock()
    wire = Wire(site_of(FakeGateway(), clock))
    assert wire.ask("/livez").status == 200
    clock.advance(IDLE_LIMIT - 1)
    assert not wire.transport.disconnecting
    clock.advance(1)
    assert wire.transport.disconnecting


@pytest_twisted.ensureDeferred
async def test_a_refused_client_that_goes_on_sending_is_cut_off() -> None:
    """The connection of a refused client that continues to send is closed after a few seconds."""

    def talk(port: int) -> float:
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=patient(10)) as connection:
            connection.sendall(b"nonsense\r\n")
            with suppress(BrokenPipeError, ConnectionResetError):
                while time.monotonic() < start + 20:
                    connection.sendall(b"x" * 1000)
                    time.sleep(0.05)
        return time.monotonic() - start

    assert 4 < await _exchange(talk) < 10


# Hypothesis: whatever comes in, what goes out is a JSON answer below 500, and nothing is logged
# as a failure.

_WORDS = (
    "GET POST HEAD PUT / // /api /list /lookup /pull /queue /mycluster /docker /livez %2F %00 %ff %"
    " ?a=b .. HTTP/1.1 HTTP/1.0 authentication: good:ann Content-Length: 5 0 Host: : {} null"
    " Transfer-Encoding:chunked Cookie:a=b;c Connection:close Expect:100-continue"
    ' Content-Type:multipart/form-data;boundary=x {"allowed_uids":"1"}'
)
_TOKENS = st.sampled_from([*_WORDS.split(), " ", "\r\n", "\r\n\r\n", "\n", "\0"]).map(str.encode)

_PIECES = st.lists(st.one_of(_TOKENS, st.binary(max_size=6)), max_size=30).map(b"".join)


def _answers(data: bytes) -> list[Reply]:
    """Send bytes; return the answers, all of them complete and well formed."""
    failures: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if "log_failure" in event or event.get("isError"):
            failures.append(event)

    globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]  # a function does
    try:
        rest = Wire(site_of(FakeGateway())).send(data)
    finally:
        globalLogPublisher.removeObserver(observe)  # type: ignore[arg-type]
    assert failures == []
    replies = []
    method = "HEAD" if b"HEAD" in data else "GET"
    while rest:
        if rest.startswith(b"HTTP/1.1 100 "):
            rest = rest.partition(b"\r\n\r\n")[2]
            continue
        head = rest.partition(b"\r\n\r\n")[0]
        reply, rest = Reply.parse(rest, method)
        if method == "HEAD" and not rest.startswith(b"HTTP/"):  # another method's answer
            reply, rest = Reply.parse(head + b"\r\n\r\n" + rest)
        replies.append(reply)
    return replies


def _check(reply: Reply) -> None:
    assert reply.status < 500
    kind = reply.headers["content-type"]
    assert kind == "application/json" or reply.body.isascii()
    if reply.body and kind == "application/json":
        assert isinstance(reply.json, dict)
        assert b"\n" not in reply.body


@settings(max_examples=examples(100))
@given(_PIECES)
def test_any_bytes(data: bytes) -> None:
    """No stream of bytes causes a 5xx, an answer of Twisted's own, or a traceback."""
    for reply in _answers(data):
        _check(reply)


@settings(max_examples=examples(100))
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_any_path(path: str) -> None:
    """No path causes a 5xx."""
    for target in (f"/{path}", f"/api/lookup/mycluster/docker/{path}"):
        data = f"GET {target} HTTP/1.1\r\nauthentication:good:ann\r\n\r\n".encode()
        (reply,) = _answers(data)
        _check(reply)


@settings(max_examples=examples(100))
@given(st.binary(max_size=80))
def test_any_header(value: bytes) -> None:
    """No credential causes a 5xx."""
    data = b"GET /api/list/mycluster/ HTTP/1.1\r\nauthentication:" + value + b"\r\n\r\n"
    for reply in _answers(data):
        _check(reply)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["allowed_uids", "allowed_gids", "x"]) | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=examples(100))
@given(st.one_of(_JSON.map(lambda v: json.dumps(v).encode()), st.binary(max_size=80)))
def test_any_body(body: bytes) -> None:
    """No body causes a 5xx."""
    (reply,) = _answers(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    assert reply.status in {200, 400}
    _check(reply)
