"""Connections that carry uploads: their order, their pace, and what they wait for."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from shiftergw.errors import Unavailable
from shiftergw.model.uploads import CHUNK_LIMIT
from shiftergw.plumbing.timing import pause
from shiftergw.service.upload_chunks import Chunk
from shiftergw.service.uploads import CHUNKS_PER_USER
from shiftergw.web.channel import IDLE_LIMIT, LEAST_RATE
from shiftergw.web.connections import ConnectionLimits
from tests.patience import patient
from tests.web.fakes import Reply, Wire, site_of
from tests.web.upload_site import (
    CONTENT,
    DECLARATION,
    SIZE,
    Place,
    beginning,
    only_answer,
    request,
    running_place,
)


@pytest_twisted.ensureDeferred
async def test_requests_after_a_chunk(place: Place) -> None:
    """One connection sends chunks and other requests, one behind the other."""
    upload = await place.declare()
    path = f"/api/upload/mycluster/{upload['upload']}"
    pieces = [
        request("PUT", f"{path}?offset=0", CONTENT[:15_000]),
        request("PUT", f"{path}?offset=15000", CONTENT[15_000:]),
        request("GET", path, None),
    ]
    data = b"".join(pieces).replace(b"Connection: close\r\n", b"", 2)

    def talk() -> bytes:
        with socket.create_connection(("127.0.0.1", place.port), patient(20)) as connection:
            connection.sendall(data)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        return answer

    answer = await deferToThread(talk)
    offsets = []
    while answer:
        reply, answer = Reply.parse(answer)
        offsets.append(reply.json["offset"])
    assert offsets == [15_000, SIZE, SIZE]


@pytest_twisted.ensureDeferred
async def test_a_client_that_asks_first(place: Place) -> None:
    """`Expect: 100-continue`, as curl sends it for a long body, works."""
    upload = await place.declare()
    data = request("PUT", f"/api/upload/mycluster/{upload['upload']}?offset=0", CONTENT)
    head, _, body = data.partition(b"\r\n\r\n")

    def talk() -> bytes:
        with socket.create_connection(("127.0.0.1", place.port), patient(20)) as connection:
            connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            connection.sendall(body)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        return answer

    reply, _ = Reply.parse(await deferToThread(talk))
    assert (reply.status, reply.json["offset"]) == (200, SIZE)


@pytest_twisted.ensureDeferred
async def test_a_client_that_asks_first_is_refused_before_it_sends(place: Place) -> None:
    """With `Expect: 100-continue` the bytes of a refused chunk are not sent."""
    upload = await place.declare()
    data = request("PUT", f"/api/upload/mycluster/{upload['upload']}?offset=7", CONTENT)
    head, _, _ = data.partition(b"\r\n\r\n")
    data = head + b"\r\nExpect: 100-continue\r\n\r\n"
    reply = await deferToThread(only_answer, place.port, data)
    assert (reply.status, reply.json["offset"]) == (409, 0)


@pytest_twisted.ensureDeferred
async def test_one_user_has_a_share(place: Place) -> None:
    """Of the chunks of one user that arrive at the same time, the last is a 429; lists work."""
    connections = []
    for number in range(CHUNKS_PER_USER):
        upload = await place.declare(size=SIZE + number)
        path = f"/api/upload/mycluster/{upload['upload']}?offset=0"
        connections.append(socket.create_connection(("127.0.0.1", place.port)))
        connections[-1].sendall(beginning(request("PUT", path, CONTENT), 10))
    chunks = place.gateway.uploads._chunks
    await place.wait_for(lambda: len(chunks) == CHUNKS_PER_USER)
    upload = await place.declare(size=1)
    reply = await place.ask("PUT", f"/api/upload/mycluster/{upload['upload']}?offset=0", b"x")
    assert (reply.status, reply.json["code"]) == (429, "too-many")
    assert (await place.ask("GET", "/api/list/mycluster/")).status == 200
    for connection in connections:
        connection.close()
    await place.wait_for(lambda: not chunks)
    reply = await place.ask("PUT", f"/api/upload/mycluster/{upload['upload']}?offset=0", b"x")
    assert reply.status == 200


@pytest_twisted.ensureDeferred
async def test_a_disk_that_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the middle of a chunk is answered at once; the upload continues later."""
    upload = await place.declare(size=CHUNK_LIMIT)
    path = f"/api/upload/mycluster/{upload['upload']}"
    write = Chunk.write
    counts = [0]

    async def failing_write(chunk: Chunk, data: bytes) -> None:
        counts[0] += 1
        if counts[0] == 3:
            raise Unavailable("The disk hangs.")
        await write(chunk, data)

    monkeypatch.setattr(Chunk, "write", failing_write)
    reply = await place.ask("PUT", f"{path}?offset=0", bytes(4 << 20))
    assert (reply.status, reply.json["code"]) == (503, "unavailable")
    offset = (await place.ask("GET", path)).json["offset"]
    assert 0 < offset < 4 << 20


@pytest_twisted.ensureDeferred
async def test_slow_clients(tmp_path: Path) -> None:
    """A chunk below the least rate gets a 408 after its time; the bytes that arrived stay."""
    clock = Clock()
    async with running_place(tmp_path, clock) as place:
        uploads = place.gateway.uploads
        site = site_of(place.gateway, clock, limits=ConnectionLimits(request_seconds=30))
        declare = Wire(site)
        data = request("POST", "/api/upload/mycluster/", json.dumps(DECLARATION).encode())
        declare.send(data)
        await place.wait_for(lambda: b"\r\n\r\n{" in declare.transport.value())
        upload_id = Reply.parse(declare.transport.value())[0].json["upload"]
        wire = Wire(site)
        path = f"/api/upload/mycluster/{upload_id}?offset=0"
        data = request("PUT", path, CONTENT)
        wire.send(beginning(data, 1000))
        await place.wait_for(lambda: bool(uploads._chunks))
        seconds = IDLE_LIMIT + SIZE / LEAST_RATE
        for _ in range(2):
            clock.advance(IDLE_LIMIT / 2 - 1)
            wire.send(b"x" * 100)
        assert wire.transport.value() == b""
        clock.advance(seconds - IDLE_LIMIT + 2)
        reply, _ = Reply.parse(wire.transport.value())
        assert (reply.status, reply.json["code"]) == (408, "too-slow")
        assert wire.channel is not None
        wire.channel.connectionLost(None)
        await place.wait_for(lambda: not uploads._chunks)
        upload = await place.spool.get(upload_id)
        assert upload is not None
        assert upload.offset == 1200


@pytest_twisted.ensureDeferred
async def test_the_connection_waits_for_the_authentication(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While munge is slow, no bytes of the body are read beyond those that came with the head."""
    gate: Deferred[None] = Deferred()
    upload = await place.declare(size=CHUNK_LIMIT)
    receive = place.gateway.uploads.receive

    async def slow_receive(*arguments: Any) -> Any:
        await gate
        return await receive(*arguments)

    monkeypatch.setattr(place.gateway.uploads, "receive", slow_receive)
    path = f"/api/upload/mycluster/{upload['upload']}?offset=0"
    asking = Deferred.fromCoroutine(place.ask("PUT", path, bytes(CHUNK_LIMIT)))
    await pause(0.1, reactor)
    assert not asking.called
    gate.callback(None)
    assert (await asking).json["offset"] == CHUNK_LIMIT
