"""A registry of prepared images that can misbehave, in threads of the test's process."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shiftergw.model.images import Digest
from tests.images import MadeImage
from tests.server_thread import ServerThread


class FaultyRegistry(ServerThread):
    """A registry that serves images as `name:1` over plain HTTP on the loopback.

    `faults` maps a repository to its fault: `truncated`, `reset`, `corrupt`, `missing-layer`,
    `401`, `404` or `500`; a repository with `login` requires a login. `rate_limits` maps a
    repository to the value of `Retry-After` and to the number of requests for manifests that are
    still answered with 429. `manifest_requests` counts the requests for manifests of each.
    """

    def __init__(self) -> None:
        """Listen on a free port."""
        self.images: dict[str, MadeImage] = {}
        self.faults: dict[str, str] = {}
        self.rate_limits: dict[str, tuple[str, int]] = {}
        self.manifest_requests: Counter[str] = Counter()
        registry = self

        class Answer(_Answer):
            pass

        Answer.registry = registry
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        server.daemon_threads = True
        self.host = f"127.0.0.1:{server.server_address[1]}"
        super().__init__(server)

    def add(self, name: str, image: MadeImage, fault: str = "") -> None:
        """Serve `image` as `name:1`."""
        self.images[name] = image
        self.faults[name] = fault


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: FaultyRegistry

    def log_message(self, *args: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        parts = self.path.removeprefix("/v2/").rsplit("/", 2)
        if len(parts) != 3 or parts[0] not in self.registry.images:
            return self._send(404, b'{"errors": [{"code": "NAME_UNKNOWN"}]}')
        name, kind, reference = parts
        image, fault = self.registry.images[name], self.registry.faults[name]
        if fault == "login":
            fault = "" if "Authorization" in self.headers else "401"
        if fault in {"401", "404", "500"}:
            return self._send(int(fault), b'{"errors": []}', challenge=fault == "401")
        if kind == "manifests":
            return self._manifest(name, image, with_body=with_body)
        digest = Digest.parse(reference)
        content = image.blobs.get(digest)
        is_layer = str(digest) in {layer["digest"] for layer in image.document["layers"]}
        if content is None or (is_layer and fault == "missing-layer"):
            return self._send(404, b'{"errors": [{"code": "BLOB_UNKNOWN"}]}')
        if is_layer and fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if is_layer and fault in {"truncated", "reset"}:
            return self._break_off(content, reset=fault == "reset")
        return self._send(200, content)

    def _manifest(self, name: str, image: MadeImage, *, with_body: bool) -> None:
        """Send a manifest, or 429 while requests for it are limited."""
        self.registry.manifest_requests[name] += 1
        retry_after, count = self.registry.rate_limits.get(name, ("", 0))
        self.registry.rate_limits[name] = retry_after, count - 1
        if count > 0:
            self._send(429, b"", retry_after=retry_after)
        else:
            self._send(200, image.manifest, image.media_type, with_body=with_body)

    def _send(
        self,
        status: int,
        content: bytes,
        media_type: str = "application/octet-stream",
        *,
        challenge: bool = False,
        retry_after: str = "",
        with_body: bool = True,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        if challenge:
            self.send_header("WWW-Authenticate", 'Basic realm="here"')
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _break_off(self, content: bytes, *, reset: bool) -> None:
        """Announce the length of a blob, send its first half, and close the connection."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
