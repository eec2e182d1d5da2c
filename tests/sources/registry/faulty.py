"""A site of three servers on the loopback that answer by a script, and record their requests.

The site has a registry, a token service and an object store, each on a port of its own. It speaks
HTTP by hand, so that a script can also break the rules of HTTP.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from shiftergw.model.images import Digest
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.timing import pause
from tests.images import MadeImage
from tests.sources.registry.network import REACTOR

ALICE = RegistryLogin("alice", "pä:ss wörd")
"""The login that a site of restricted access accepts."""

Server = Literal["registry", "tokens", "store"]
Framing = Literal["length", "chunks", "close", "http/1.0"]
"""How the end of a body is marked: by `Content-Length`, chunks, or the end of the connection."""

Access = Literal["open", "basic", "token", "login token"]
"""Who may read: anyone, `ALICE` by Basic, anyone with a token, or holders of a token of `ALICE`."""


@dataclass(frozen=True)
class Reply:
    """A response; the connection may end after the first `cut` bytes of the body."""

    status: int = 200
    body: bytes = b""
    fields: Mapping[str, str] = field(default_factory=dict)
    framing: Framing = "length"
    cut: int | None = None

    def bytes_for(self, method: str) -> bytes:
        """Return the bytes for the connection."""
        version = "HTTP/1.0" if self.framing == "http/1.0" else "HTTP/1.1"
        lines = [f"{version} {self.status} Text", *(f"{k}: {v}" for k, v in self.fields.items())]
        body = b"" if method == "HEAD" else self.body[: self.cut]
        if self.framing == "length":
            lines.append(f"Content-Length: {len(self.body)}")
        elif self.framing == "chunks":
            lines.append("Transfer-Encoding: chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        elif self.framing == "close":
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode() + body

    @property
    def is_last(self) -> bool:
        """Return whether the connection ends after this response."""
        return self.cut is not None or self.framing in {"close", "http/1.0"}


_PATHS = ("/v2/", "/extensions/v2/", "/token", "/blobs/")

HANG_UP = Reply(cut=0)
"""No response: the connection ends at once."""


@dataclass(frozen=True)
class Request:
    """A request to a script; `nth` is its number, from 1, among those of the same line."""

    site: FaultySite
    server: Server
    method: str
    path: str
    fields: Mapping[str, str]
    body: bytes
    nth: int = 1

    @property
    def kind(self) -> str:
        """Return the kind of the document: `manifest`, `config`, `layer`, `token`, or the path."""
        path = self.path.partition("?")[0]
        if path.startswith("/token"):
            return "token"
        if "/manifests/" in path:
            return "manifest" if ":" not in path else "child"
        return "blob" if "/blobs/" in path else path

    @property
    def caller(self) -> str:
        """Return the owner of the request's credential, such as `alice` or `anonymous token`."""
        value = self.fields.get("authorization", "")
        if value.startswith("Basic "):
            return base64.b64decode(value[6:]).decode().partition(":")[0]
        if b"password=" in self.body:
            return "alice"
        return value.removeprefix("Bearer ").replace("-", " ")

    @property
    def line(self) -> str:
        """Return the request in a few words: `GET manifest as alice`."""
        place = "" if self.server != "store" else "stored "
        caller = f" as {self.caller}" if self.caller else ""
        return f"{self.method} {place}{self.kind}{caller}"


Script = Callable[[Request], Reply | None]
"""Answers a request; if it returns None, the site answers it well."""


class FaultySite:
    """A registry that has images, its token service, and its object store.

    The first image is `latest`. `script` may answer a request itself, and `access` says who
    may read the rest. `requests` has every request, and `good` counts the correct bodies by their
    path.
    """

    def __init__(
        self, *images: MadeImage, script: Script | None = None, access: Access = "open"
    ) -> None:
        """Serve nothing yet."""
        self.script: Script = script or (lambda _: None)
        self.access: Access = access
        self.requests: list[Request] = []
        self.good: Counter[str] = Counter()
        self.hosts: dict[Server, str] = {}
        self.documents: dict[str, tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.uses_store = False
        """Whether the registry redirects requests for blobs to the store."""
        self._ports: list[Any] = []
        self._connections: set[Protocol] = set()
        for image in images:
            self.add(image.manifest, image.media_type)
            self.blobs.update({str(digest): blob for digest, blob in image.blobs.items()})
        if images:
            self.tags["latest"] = str(images[0].digest)

    def add(self, content: bytes, media_type: str, tag: str | None = None) -> Digest:
        """Serve another manifest or index, also by a tag; return its digest."""
        digest = Digest.of(content)
        self.documents[str(digest)] = (content, media_type)
        if tag is not None:
            self.tags[tag] = str(digest)
        return digest

    @property
    def lines(self) -> list[str]:
        """Return all requests in a few words each."""
        return [request.line for request in self.requests]

    @property
    def repeated_paths(self) -> list[str]:
        """Return the paths of documents and blobs with more than one correct answer."""
        return sorted(path for path, count in self.good.items() if count > 1)

    @property
    def challenge(self) -> dict[str, str]:
        """Return the header field of a response with status 401."""
        realm = f'realm="http://{self.hosts["tokens"]}/token",service="faulty"'
        challenge = 'Basic realm="faulty"' if self.access == "basic" else f"Bearer {realm}"
        return {"WWW-Authenticate": challenge}

    def respond(self, request: Request) -> Reply:
        """Answer a request by the script, or else correctly.

        A request of another program is not recorded: other tests look for servers on ports of this
        machine.
        """
        if not request.path.startswith(_PATHS):
            return Reply(404)
        nth = 1 + sum(
            (earlier.method, earlier.path, earlier.caller)
            == (request.method, request.path, request.caller)
            for earlier in self.requests
        )
        request = replace(request, nth=nth)
        self.requests.append(request)
        reply = self.script(request)
        if reply is None:
            reply = self.respond_well(request)
            if reply.status == 200 and request.method == "GET" and request.kind != "token":
                self.good[request.path] += 1
        return reply

    def respond_well(self, request: Request) -> Reply:
        """Return the correct response to a request."""
        if request.server == "tokens":
            return _token(request)
        if request.server == "registry" and not self._may_read(request):
            return Reply(401, b'{"errors":[{"message":"log in"}]}', self.challenge)
        path = request.path.partition("?")[0]
        name = path.rpartition("/")[2]
        digest = self.tags.get(name, name)
        if path == "/v2/":
            reply = Reply()
        elif "/manifests/" in path and digest in self.documents:
            content, media_type = self.documents[digest]
            fields = {"Content-Type": media_type, "Docker-Content-Digest": digest}
            reply = Reply(200, content, fields)
        elif name not in self.blobs:
            reply = Reply(404, b'{"errors":[{"message":"unknown"}]}')
        elif self.uses_store and request.server == "registry":
            reply = Reply(307, fields={"Location": f"http://{self.hosts['store']}/blobs/{name}"})
        else:
            reply = Reply(200, self.blobs[name], {"Content-Type": "application/octet-stream"})
        return reply

    def _may_read(self, request: Request) -> bool:
        callers: dict[Access, set[str]] = {
            "open": {request.caller},
            "basic": {"alice"},
            "token": {"anonymous token", "alice token"},
            "login token": {"alice token"},
        }
        return request.caller in callers[self.access]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Run the three servers; give the URL of the registry."""
        try:
            for server in ("registry", "tokens", "store"):
                endpoint = TCP4ServerEndpoint(REACTOR, 0, interface="127.0.0.1")
                port: Any = await endpoint.listen(_Listener(self, server, self._connections))
                self._ports.append(port)
                self.hosts[server] = f"127.0.0.1:{port.getHost().port}"
            yield f"http://{self.hosts['registry']}"
        finally:
            for port in self._ports:
                await port.stopListening()
            while self._connections:
                for connection in tuple(self._connections):
                    transport: Any = connection.transport
                    transport.abortConnection()
                await pause(0.01, REACTOR)


def _token(request: Request) -> Reply:
    if request.caller == "alice":
        value = f"Basic {base64.b64encode(f'{ALICE.user}:{ALICE.password}'.encode()).decode()}"
        if request.method == "GET" and request.fields["authorization"] != value:
            return Reply(401, b'{"details":"wrong password"}')
    name = "alice-token" if request.caller else "anonymous-token"
    return Reply(200, json.dumps({"token": name}).encode(), {"Content-Type": "application/json"})


class _Listener(Factory):
    """The factory of a server's connections."""

    noisy = False

    def __init__(self, site: FaultySite, server: Server, connections: set[Protocol]) -> None:
        self.site = site
        self.server: Server = server
        self.connections = connections

    def buildProtocol(self, addr: Any) -> Protocol:
        return _Connection(self)


class _Connection(Protocol):
    """A connection: requests one after another, each with its head and its body."""

    def __init__(self, listener: _Listener) -> None:
        self._listener = listener
        self._buffer = b""

    def connectionMade(self) -> None:
        self._listener.connections.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._listener.connections.discard(self)

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            length = int(fields.get("content-length", 0))
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            method, path, _ = first.split(" ")
            site = self._listener.site
            request = Request(site, self._listener.server, method, path, fields, rest[:length])
            self._reply(method, site.respond(request))

    def _reply(self, method: str, reply: Reply) -> None:
        transport: Any = self.transport
        if reply is not HANG_UP:
            transport.write(reply.bytes_for(method))
        if reply.is_last:
            transport.loseConnection()
