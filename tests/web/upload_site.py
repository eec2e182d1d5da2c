"""A site that takes uploads, and requests to it over a socket."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from shiftergw.cache.upload_spool import UploadFiles
from shiftergw.cache.upload_states import data_path
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.service.upload_space import UploadLimits
from shiftergw.service.uploads import Uploads
from shiftergw.store.sqlite.store import SqliteStore
from tests.patience import patient
from tests.web.fakes import FakeGateway, Reply, check_reply

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
        reply = await deferToThread(only_answer, self.port, data)
        check_reply(method, path, reply)
        return reply

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


def only_answer(port: int, data: bytes) -> Reply:
    """Send bytes; return the only answer before the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=patient(20)) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    reply, rest = Reply.parse(answer)
    assert rest == b""
    return reply


@asynccontextmanager
async def running_place(tmp_path: Path, clock: Any) -> AsyncIterator[Place]:
    """Run real uploads below a directory; no site listens yet."""
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
