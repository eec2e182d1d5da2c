"""The routes of uploads: bodies of 16 MiB over real sockets, resumed after every kind of break."""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from shiftergw.model.uploads import CHUNK_LIMIT, UploadChoice
from shiftergw.plumbing.timing import pause
from shiftergw.service.upload_chunks import Chunk
from shiftergw.web.bodies import MOST_WAITING
from shiftergw.web.channel import READ_BYTES
from tests.web.fakes import Reply
from tests.web.upload_site import CONTENT, SIZE, Place, beginning, request


@pytest_twisted.ensureDeferred
async def test_an_upload_in_chunks(place: Place) -> None:
    """After the declaration, each chunk and each query, the answer has the state of the upload."""
    upload = await place.declare()
    assert (upload["offset"], upload["size"], upload["chunk"]) == (0, SIZE, CHUNK_LIMIT)
    assert isinstance(upload["expires"], float)
    path = f"/api/upload/mycluster/{upload['upload']}"
    for start in range(0, SIZE, 7000):
        reply = await place.ask("PUT", f"{path}?offset={start}", CONTENT[start : start + 7000])
        assert (reply.status, reply.json["offset"]) == (200, min(start + 7000, SIZE))
        assert (await place.ask("GET", path)).json == reply.json
        assert reply.headers["x-request-id"]
    assert place.content(upload["upload"]) == CONTENT
    assert (await place.declare())["offset"] == SIZE
    assert (await place.ask("DELETE", path)).json == {"status": True}
    assert (await place.ask("GET", path)).status == 404


@pytest_twisted.ensureDeferred
async def test_the_list_of_uploads(place: Place) -> None:
    """The list has only the user's uploads, with their declarations and the bytes that arrived."""
    upload = await place.declare()
    path = f"/api/upload/mycluster/{upload['upload']}"
    await place.ask("PUT", f"{path}?offset=0", CONTENT[:7000])
    state = (await place.ask("GET", path)).json
    reply = await place.ask("GET", "/api/upload/mycluster/")
    assert reply.status == 200
    assert reply.json == {
        "list": [
            {
                "upload": upload["upload"],
                "filename": "x.sif",
                "kind": "sif",
                "size": SIZE,
                "offset": 7000,
                "expires": state["expires"],
                "images": [],
            }
        ]
    }
    reply = await place.ask("GET", "/api/upload/mycluster/", user="bob")
    assert reply.json == {"list": []}
    assert (await place.ask("GET", "/api/upload/mycluster/", user="")).status == 401


@pytest_twisted.ensureDeferred
async def test_a_chunk_of_16_mib(place: Place) -> None:
    """The longest chunk arrives unchanged; a longer one is refused before it is read."""
    content = os.urandom(1 << 20) * 17
    upload = await place.declare(size=len(content))
    path = f"/api/upload/mycluster/{upload['upload']}?offset=0"
    reply = await place.ask("PUT", path, content[: CHUNK_LIMIT + 1])
    assert (reply.status, reply.json["code"]) == (413, "too-large")
    reply = await place.ask("PUT", path, content[:CHUNK_LIMIT])
    assert (reply.status, reply.json["offset"]) == (200, CHUNK_LIMIT)
    assert place.content(upload["upload"]) == content[:CHUNK_LIMIT]


@pytest_twisted.ensureDeferred
async def test_a_body_never_gathers_in_memory(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is slower than the network, the connection is held."""
    sizes = []
    write = Chunk.write

    async def slow_write(chunk: Chunk, data: bytes) -> None:
        sizes.append(len(data))
        await pause(0.01, reactor)
        await write(chunk, data)

    monkeypatch.setattr(Chunk, "write", slow_write)
    content = bytes(8 << 20)
    upload = await place.declare(size=len(content))
    path = f"/api/upload/mycluster/{upload['upload']}?offset=0"
    assert (await place.ask("PUT", path, content)).json["offset"] == len(content)
    assert sum(sizes) == len(content)
    assert max(sizes) <= MOST_WAITING + READ_BYTES


@pytest_twisted.ensureDeferred
async def test_a_wrong_offset(place: Place) -> None:
    """The 409 has the right offset, and arrives although the client still sends its chunk."""
    upload = await place.declare(size=2 * CHUNK_LIMIT)
    path = f"/api/upload/mycluster/{upload['upload']}"
    await place.ask("PUT", f"{path}?offset=0", b"01234")
    for offset in (0, 6):
        reply = await place.ask("PUT", f"{path}?offset={offset}", bytes(3 << 20))
        assert (reply.status, reply.json["code"]) == (409, "upload-conflict")
        assert reply.json["offset"] == 5
    assert place.content(upload["upload"]) == b"01234"


@pytest.mark.parametrize("reset", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_killed_client_resumes_within_the_chunk(place: Place, reset: bool) -> None:
    """The bytes of a chunk that arrived count, whether the connection ends in order or is reset."""
    content = os.urandom(1 << 20)
    upload = await place.declare(size=len(content))
    path = f"/api/upload/mycluster/{upload['upload']}"

    def break_off() -> None:
        data = request("PUT", f"{path}?offset=0", content)
        with socket.create_connection(("127.0.0.1", place.port)) as connection:
            connection.sendall(data[:700_000])
            if reset:
                wait_until_read(connection)
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def wait_until_read(connection: socket.socket) -> None:
        while place.directory.stat() and not place.content(upload["upload"]):
            connection.settimeout(0.01)

    await deferToThread(break_off)
    offset = 0
    while not offset:
        await pause(0.01, reactor)
        offset = (await place.ask("GET", path)).json["offset"]
    assert reset or offset > 600_000
    reply = await place.ask("PUT", f"{path}?offset={offset}", content[offset:])
    assert (reply.status, reply.json["offset"]) == (200, len(content))
    assert place.content(upload["upload"]) == content


@pytest_twisted.ensureDeferred
async def test_a_dead_connection_does_not_keep_its_upload(place: Place) -> None:
    """A new request takes an upload over from a hanging one, which gets a 409."""
    upload = await place.declare()
    path = f"/api/upload/mycluster/{upload['upload']}"
    dead_connection = socket.create_connection(("127.0.0.1", place.port))
    with dead_connection:
        data = request("PUT", f"{path}?offset=0", CONTENT)
        dead_connection.sendall(beginning(data, 10))
        uploads = place.gateway.uploads
        await place.wait_for(lambda: bool(uploads._chunks))
        reply = await place.ask("PUT", f"{path}?offset=0", CONTENT)
        assert reply.json["offset"] == SIZE
        await deferToThread(dead_connection.sendall, data[len(beginning(data, 10)) :])
        answer, _ = Reply.parse(await deferToThread(dead_connection.recv, 65536))
        assert (answer.status, answer.json["offset"]) == (409, SIZE)
    assert place.content(upload["upload"]) == CONTENT


@pytest.mark.parametrize(
    ("members", "choice"),
    [
        ({"upload": "ab" * 16}, UploadChoice("ab" * 16)),
        (
            {"upload": "ab" * 16, "selector": "app:1", "public": True},
            UploadChoice("ab" * 16, "app:1", public=True),
        ),
        ({"upload": None}, None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_pull_of_an_upload(
    place: Place, members: dict[str, Any], choice: UploadChoice | None
) -> None:
    """The members of the body reach the rules."""
    body = json.dumps(members).encode()
    assert (await place.ask("POST", "/api/pull/mycluster/custom/a:1", body)).status == 200
    call = place.gateway.calls[-1]
    assert call[7:] == (() if choice is None else (choice,))
