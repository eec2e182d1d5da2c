"""The routes of uploads: bodies of 16 MiB over real sockets, resumed after every kind of break."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.cache.upload_states import data_path
from shiftergw.errors import NotAllowed, Unavailable
from shiftergw.model.uploads import CHUNK_LIMIT, ImageFile, UploadChoice
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.service import upload_space
from shiftergw.service.upload_chunks import Chunk
from shiftergw.service.upload_space import UploadLimits
from shiftergw.service.uploads import CHUNKS_PER_USER, Uploads
from shiftergw.store.sqlite.store import SqliteStore
from shiftergw.web.bodies import MOST_WAITING
from shiftergw.web.channel import IDLE_LIMIT, LEAST_RATE, READ
from shiftergw.web.connections import ConnectionLimits
from tests.patience import patient
from tests.web.fakes import READY, FakeGateway, Reply, Wire, listening, site_of

SIZE = 20_000
CONTENT = os.urandom(SIZE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
DECLARATION = {"size": SIZE, "sha256": SHA256, "kind": "sif", "filename": "x.sif"}


@dataclass
class Place:
    """A site with real uploads; its rules are fakes. `ask` sends one request over a socket."""

    gateway: FakeGateway
    spool: UploadFiles
    directory: Path
    port: int = 0

    async def ask(
        self, method: str, path: str, body: bytes | None = None, user: str = "ann"
    ) -> Reply:
        """Send a request on a new connection; return its answer."""
        data = request(method, path, body, user)
        return await deferToThread(_only_answer, self.port, data)

    async def declare(self, **changes: Any) -> Any:
        """Declare an upload and return the members of the answer."""
        body = json.dumps(DECLARATION | changes).encode()
        reply = await self.ask("POST", "/api/upload/mycluster/", body)
        assert reply.status == 200, reply
        return reply.json

    def content(self, upload_id: str) -> bytes:
        """Return the bytes of an upload that are in its file."""
        return data_path(self.directory, upload_id).read_bytes()

    async def wait_for(self, is_true: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        while not is_true():
            await pause(0.01, reactor)


def request(method: str, path: str, body: bytes | None, user: str = "ann") -> bytes:
    """Return the bytes of a request."""
    length = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
    head = f"{method} {path} HTTP/1.1\r\nConnection: close\r\nauthentication:good:{user}\r\n"
    return head.encode() + length + b"\r\n" + (body or b"")


def beginning(data: bytes, count: int) -> bytes:
    """Return the head of a request and `count` bytes of its body."""
    return data[: data.index(b"\r\n\r\n") + 4 + count]


def _only_answer(port: int, data: bytes) -> Reply:
    with socket.create_connection(("127.0.0.1", port), timeout=patient(20)) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    reply, rest = Reply.parse(answer)
    assert rest == b""
    return reply


@asynccontextmanager
async def _running(tmp_path: Path, clock: Any) -> AsyncIterator[Place]:
    pool = Threads(reactor, 8, "test")
    pool.startService()
    store = SqliteStore(reactor, tmp_path / "store.sqlite")
    await store.startService()
    spool = UploadFiles(tmp_path / "uploads", pool, reactor)
    await spool.startService()
    limits = UploadLimits(10**8, 10**9, 10**9, 3600.0)
    gateway = FakeGateway(uploads=Uploads(spool, store, limits, clock))
    yield Place(gateway, spool, tmp_path / "uploads")
    await store.stopService()
    await pool.stopService()


@pytest_twisted.async_yield_fixture()
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    """Yield a site that listens."""
    monkeypatch.setattr(upload_space, "DISK_RESERVE", 0)
    async with (
        _running(tmp_path, reactor) as running,
        listening(site_of(running.gateway, reactor)) as port,
    ):
        running.port = port
        yield running


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
    assert max(sizes) <= MOST_WAITING + READ


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


@pytest_twisted.ensureDeferred
async def test_who_is_not_authenticated_sends_no_body(place: Place) -> None:
    """A bad credential, another user and an unknown id are refused before the body is read."""
    upload = await place.declare(size=CHUNK_LIMIT)
    path = f"/api/upload/mycluster/{upload['upload']}?offset=0"
    body = bytes(2 << 20)
    assert (await place.ask("PUT", path, body, user="")).status == 401
    assert (await place.ask("PUT", path, body, user="bob")).status == 404
    unknown = f"/api/upload/mycluster/{'0' * 32}?offset=0"
    assert (await place.ask("PUT", unknown, body)).status == 404
    assert place.content(upload["upload"]) == b""


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/api/upload/mycluster/{}?offset=x", b"x", 400),
        ("PUT", "/api/upload/mycluster/{}?offset=0&offset=1", b"x", 400),
        ("PUT", "/api/upload/mycluster/{}?offset=-1", b"x", 400),
        ("PUT", "/api/upload/mycluster/{}", b"x", 400),
        ("PUT", "/api/upload/mycluster/{}?offset=0", b"", 400),
        ("PUT", "/api/upload/mycluster/{}?offset=0", None, 400),
        ("PUT", "/api/upload/mycluster/{}?offset=0", bytes(SIZE + 1), 413),
        ("PUT", "/api/upload/mycluster/..%2F..%2Fx?offset=0", b"x", 404),
        ("PUT", "/api/upload/other/{}?offset=0", b"x", 404),
        ("PUT", "/api/upload/mycluster/", b"x", 405),
        ("POST", "/api/upload/mycluster/{}", b"{}", 405),
        ("DELETE", "/api/upload/mycluster/", None, 405),
        ("GET", "/api/upload/mycluster/../x", None, 404),
        ("DELETE", "/api/upload/mycluster/x", None, 404),
    ],
)
@pytest_twisted.ensureDeferred
async def test_requests_that_are_wrong(
    place: Place, method: str, path: str, body: bytes | None, status: int
) -> None:
    """Invalid requests are refused in JSON, and the upload stays unchanged."""
    upload = await place.declare()
    reply = await place.ask(method, path.format(upload["upload"]), body)
    assert (reply.status, reply.json["status"]) == (status, status)
    assert place.content(upload["upload"]) == b""


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": -1},
        {"size": "5"},
        {"size": True},
        {"size": 1 << 70},
        {"sha256": "x"},
        {"sha256": None},
        {"sha256": "AB" * 32},
        {"kind": "exe"},
        {"kind": 1},
        {"filename": ["x"]},
    ],
)
@pytest_twisted.ensureDeferred
async def test_declarations_that_are_wrong(place: Place, change: dict[str, Any]) -> None:
    """A declaration without a valid size, digest or kind creates no upload."""
    body = json.dumps(DECLARATION | change).encode()
    reply = await place.ask("POST", "/api/upload/mycluster/", body)
    assert (reply.status, reply.json["code"]) == (400, "bad-request")
    assert await place.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_the_name_of_the_image(place: Place) -> None:
    """A declaration may have it; without a digest it is checked, and nothing is declared."""
    checks = [{"name": "mine:1"}, {"name": "mine:1", "size": 10**8}]
    for members in checks:
        reply = await place.ask("POST", "/api/upload/mycluster/", json.dumps(members).encode())
        assert (reply.status, reply.json) == (200, {"status": True, "limit": 10**8})
    assert await place.spool.list() == []
    assert (await place.declare(name="mine:1"))["offset"] == 0
    calls = [(call[0], call[-1]) for call in place.gateway.calls]
    assert calls == [("check_new_image", "mine:1")] * 3
    place.gateway.raises = NotAllowed("This name belongs to an image of another user.")
    for body in (checks[0], DECLARATION | {"name": "mine:1", "sha256": "cd" * 32}):
        reply = await place.ask("POST", "/api/upload/mycluster/", json.dumps(body).encode())
        assert (reply.status, reply.json["code"]) == (403, "not-allowed")
        assert "another user" in reply.json["error"]
    assert len(await place.spool.list()) == 1


@pytest.mark.parametrize("public", [True, False])
@pytest_twisted.ensureDeferred
async def test_an_image_that_is_ready(place: Place, *, public: bool) -> None:
    """A declaration with name and selector is answered with its record; nothing is declared."""
    readers = {"public": True} if public else {"allowed_uids": "5,6", "allowed_gids": [7]}
    members = {"name": "mine:1", "selector": "a", **readers}
    assert (await place.declare(**members))["offset"] == 0
    place.gateway.image_of_content = READY
    answer = await place.declare(**members)
    assert (answer["status"], answer["id"]) == ("READY", READY.id)
    file = ImageFile("", "sif", SIZE, SHA256, "a", public)
    users, groups = ((), ()) if public else ((5, 6), (7,))
    assert [(call[0], *call[2:]) for call in place.gateway.calls] == [
        ("find_image_of_content", "mine:1", users, groups, file)
    ] * 2
    assert len(await place.spool.list()) == 1
    # An earlier version of the client sends no selector, and understands no record.
    assert (await place.declare(name="mine:1"))["offset"] == 0


@pytest.mark.parametrize(
    ("members", "status"),
    [
        ({"name": 5}, 400),
        ({"name": None}, 400),
        ({"name": "mine", "size": 0}, 400),
        ({"name": "mine", "size": "5"}, 400),
        ({"name": "mine", "size": 10**8 + 1}, 413),
        ({"size": 5}, 400),
        (DECLARATION | {"name": None}, 400),
        (DECLARATION | {"name": "mine", "selector": None}, 400),
        (DECLARATION | {"name": "mine", "selector": "a\nb"}, 400),
        (DECLARATION | {"name": "mine", "selector": "", "public": 1}, 400),
        (DECLARATION | {"name": "mine", "selector": "", "allowed_uids": "x"}, 400),
    ],
)
@pytest_twisted.ensureDeferred
async def test_checks_that_are_wrong(place: Place, members: dict[str, Any], status: int) -> None:
    """A check without a proper name or size is refused, and so is a size beyond the limit."""
    reply = await place.ask("POST", "/api/upload/mycluster/", json.dumps(members).encode())
    assert reply.status == status
    assert await place.spool.list() == []


@pytest_twisted.ensureDeferred
async def test_a_body_without_a_length(place: Place) -> None:
    """A chunk in the chunked coding is refused: its size must be known first."""
    upload = await place.declare()
    head = request("PUT", f"/api/upload/mycluster/{upload['upload']}?offset=0", None)
    data = head[:-2] + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    reply = await deferToThread(_only_answer, place.port, data)
    assert (reply.status, reply.json["code"]) == (400, "bad-request")


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
    reply = await deferToThread(_only_answer, place.port, data)
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
    async with _running(tmp_path, clock) as running:
        uploads = running.gateway.uploads
        site = site_of(running.gateway, clock, limits=ConnectionLimits(request_seconds=30))
        declare = Wire(site)
        data = request("POST", "/api/upload/mycluster/", json.dumps(DECLARATION).encode())
        declare.send(data)
        await running.wait_for(lambda: b"\r\n\r\n{" in declare.transport.value())
        upload_id = Reply.parse(declare.transport.value())[0].json["upload"]
        wire = Wire(site)
        path = f"/api/upload/mycluster/{upload_id}?offset=0"
        data = request("PUT", path, CONTENT)
        wire.send(beginning(data, 1000))
        await running.wait_for(lambda: bool(uploads._chunks))
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
        await running.wait_for(lambda: not uploads._chunks)
        upload = await running.spool.get(upload_id)
        assert upload is not None
        assert upload.offset == 1200


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


@pytest.mark.parametrize(
    "members",
    [
        {"upload": "x"},
        {"upload": 5},
        {"upload": "ab" * 16, "public": "yes"},
        {"upload": "ab" * 16, "selector": 1},
        {"upload": "ab" * 16, "selector": "a\nb"},
        {"upload": "ab" * 16, "selector": "a" * 600},
        {"public": True},
        {"selector": "app:1"},
    ],
)
@pytest_twisted.ensureDeferred
async def test_pulls_that_are_wrong(place: Place, members: dict[str, Any]) -> None:
    """Wrong members of the body are refused."""
    body = json.dumps(members).encode()
    reply = await place.ask("POST", "/api/pull/mycluster/custom/a:1", body)
    assert (reply.status, reply.json["code"]) == (400, "bad-request")


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
