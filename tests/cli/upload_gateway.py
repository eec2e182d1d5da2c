"""A gateway that takes uploads, in this process: the HTTP interface with faults on demand."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.server_thread import ServerThread
from tests.web.fakes import IMAGE_ID

READY = {"status": "READY", "id": IMAGE_ID}

_ACCESS = ("selector", "public", "allowed_uids", "allowed_gids")


@dataclass
class Fault:
    """A fault instead of an answer: the connection breaks, or a status is sent.

    A connection breaks after the first `keep` bytes of the body are stored.
    """

    keep: int = 0
    status: int = 0


@dataclass
class DeclaredUpload:
    """An upload: its declaration, and the bytes that have arrived."""

    key: str
    declaration: dict[str, Any]
    content: bytearray = field(default_factory=bytearray)


@dataclass
class UploadGateway:
    """Keeps uploads; `faults` are used up by the next chunks, `pulls` by the next pulls.

    `chunks` are offset and length of the chunks that were asked for; `requests` are method and path
    of all requests, `bodies` the bodies of pulls. `bytes_received` counts the stored bytes of all
    chunks. `checks` are the bodies of declarations without a digest, and `names` the names in all
    others; `accesses` are the members of these about selector and readers. A declaration is
    answered with `ready` unless it is None, and checks with the `limit` of uploads. A gateway that
    `is_old` knows neither names nor the list of uploads.
    """

    faults: list[Fault] = field(default_factory=list)
    declare_faults: list[Fault] = field(default_factory=list)
    pull_faults: list[Fault] = field(default_factory=list)
    pulls: list[dict[str, Any]] = field(default_factory=lambda: [READY])
    chunk: int = 16 << 20
    is_old: bool = False
    limit: int | None = None
    check_faults: list[Fault] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    accesses: list[dict[str, Any]] = field(default_factory=list)
    ready: dict[str, Any] | None = None
    uploads: list[DeclaredUpload] = field(default_factory=list)
    chunks: list[tuple[int, int]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    bytes_received: int = 0
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[UploadGateway]:
        """Serve until the block ends."""
        handler = type("Handler", (_Handler,), {"gateway": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        with ServerThread(server):
            yield self

    @property
    def env(self) -> dict[str, str]:
        """Return the environment in which the commands find it."""
        return {
            "SHIFTERGW_GATEWAY": self.url,
            "SHIFTERGW_SYSTEM": "mycluster",
            "SHIFTERGW_CREDENTIAL": "good:ann",
        }

    def find(self, key: str) -> DeclaredUpload | None:
        """Return the upload with an id."""
        return next((upload for upload in self.uploads if upload.key == key), None)

    def declare(self, declaration: dict[str, Any]) -> DeclaredUpload:
        """Return the upload of a declaration."""
        for upload in self.uploads:
            if upload.declaration == declaration:
                return upload
        upload = DeclaredUpload(f"{len(self.uploads):032x}", declaration)
        self.uploads.append(upload)
        return upload


class _Handler(BaseHTTPRequestHandler):
    gateway: UploadGateway

    def _segments(self) -> Sequence[str]:
        path = urlsplit(self.path).path
        return [unquote(segment) for segment in path.split("/") if segment][1:]

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _state(self, upload: DeclaredUpload) -> dict[str, Any]:
        return {
            "upload": upload.key,
            "offset": len(upload.content),
            "size": upload.declaration["size"],
            "chunk": self.gateway.chunk,
            "expires": 1.5,
        }

    def _happens(self, faults: list[Fault]) -> bool:
        """Answer by the next fault of a list, if it has one."""
        if not faults:
            return False
        fault = faults.pop(0)
        if fault.status:
            self._answer(fault.status, {"error": "It is not possible now."})
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def do_POST(self) -> None:
        """Declare an upload, or pull."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        route = self._segments()[0]
        self.gateway.requests.append(("POST", self.path))
        if route == "pull":
            if self._happens(self.gateway.pull_faults):
                return
            self.gateway.bodies.append(body)
            pulls = self.gateway.pulls
            self._answer(200, pulls.pop(0) if len(pulls) > 1 else pulls[0])
        elif "sha256" not in body:
            if self.gateway.is_old:
                self._answer(400, {"error": "`sha256` is not a SHA-256 digest."})
            elif not self._happens(self.gateway.check_faults):
                self.gateway.checks.append(body)
                limit = {} if self.gateway.limit is None else {"limit": self.gateway.limit}
                self._answer(200, {"status": True, **limit})
        elif not self._happens(self.gateway.declare_faults):
            self.gateway.names.append(body.pop("name", ""))
            names = [name for name in _ACCESS if name in body]
            self.gateway.accesses.append({name: body.pop(name) for name in names})
            ready = self.gateway.ready
            self._answer(200, ready or self._state(self.gateway.declare(body)))

    def do_PUT(self) -> None:
        """Take a chunk."""
        self.gateway.requests.append(("PUT", self.path))
        assert self.headers["Content-Type"] == "application/octet-stream"
        offset = int(parse_qs(urlsplit(self.path).query)["offset"][0])
        length = int(self.headers["Content-Length"])
        self.gateway.chunks.append((offset, length))
        upload = self.gateway.find(self._segments()[2])
        fault = self.gateway.faults[0] if self.gateway.faults else None
        body = self.rfile.read(length if fault is None else fault.keep)
        if upload is None:
            self._answer(404, {"error": "There is no such upload."})
        elif offset != len(upload.content):
            self._answer(409, {"error": "Wrong offset.", "offset": len(upload.content)})
        else:
            upload.content += body
            self.gateway.bytes_received += len(body)
            if not self._happens(self.gateway.faults):
                self._answer(200, self._state(upload))

    def do_GET(self) -> None:
        """List the uploads."""
        self.gateway.requests.append(("GET", self.path))
        if self.gateway.is_old:
            self._answer(405, {"error": "GET is not possible here. Use POST."})
            return
        rows = []
        for number, upload in enumerate(self.gateway.uploads):
            state = self._state(upload)
            del state["chunk"]
            facts = {name: upload.declaration.get(name, "") for name in ("filename", "kind")}
            rows.append({**state, **facts, "expires": 1.5 + number, "images": ["app:1"]})
        self._answer(200, {"list": rows})

    def do_DELETE(self) -> None:
        """Remove an upload."""
        self.gateway.requests.append(("DELETE", self.path))
        key = self._segments()[2]
        if self.gateway.find(key) is None:
            self._answer(404, {"error": "There is no such upload."})
            return
        self.gateway.uploads = [upload for upload in self.gateway.uploads if upload.key != key]
        self._answer(200, {"status": True})

    def log_message(self, *_: object) -> None:
        """Print nothing."""
