"""A registry that serves made images and misbehaves as told, in threads of the test's process."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from shiftergw.image import Digest
from tests.images import MadeImage


class FaultyRegistry:
    """Serves images under `name:1`, anonymously, over plain HTTP on the loopback.

    `faults` maps a repository to what goes wrong with it: `truncated`, `reset`, `corrupt`,
    `missing-layer`, `401`, `404`, `500`; nothing does for the others. `login` wants any login.
    `limited` maps a repository to what its `Retry-After` says and how many requests for manifests
    are answered 429 yet; `asked` counts those of each repository.
    """

    def __init__(self) -> None:
        """Listen on a free port."""
        self.images: dict[str, MadeImage] = {}
        self.faults: dict[str, str] = {}
        self.limited: dict[str, tuple[str, int]] = {}
        self.asked: Counter[str] = Counter()
        registry = self

        class Answer(_Answer):
            pass

        Answer.registry = registry
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        """Serve."""
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name: str, image: MadeImage, fault: str = "") -> None:
        """Serve `image` as `name:1`."""
        self.images[name] = image
        self.faults[name] = fault


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: FaultyRegistry

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

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
        is_layer = str(digest) in {one["digest"] for one in image.document["layers"]}
        if content is None or (is_layer and fault == "missing-layer"):
            return self._send(404, b'{"errors": [{"code": "BLOB_UNKNOWN"}]}')
        if is_layer and fault == "corrupt":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if is_layer and fault in {"truncated", "reset"}:
            return self._break_off(content, reset=fault == "reset")
        return self._send(200, content)

    def _manifest(self, name: str, image: MadeImage, *, with_body: bool) -> None:
        """Send a manifest, unless requests for it are limited yet."""
        self.registry.asked[name] += 1
        retry_after, left = self.registry.limited.get(name, ("", 0))
        self.registry.limited[name] = retry_after, left - 1
        if left > 0:
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
        """Send the first half of a blob whose whole length was announced, and hang up."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
