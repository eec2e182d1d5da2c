"""A registry for the recorded states: a few small images, private repositories, resumed downloads.

It uses the standard library and `tests.images` only, and each image has the same bytes in every
run.
"""

from __future__ import annotations

import base64
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.images import MadeImage, entry, make_image, tar_of
from tests.server_thread import ServerThread

PASSWORDS = {"alice": "wonderland", "bob": "builder"}
"""The logins of the repositories whose name begins with `closed/`."""

_PATH = re.compile(r"/v2/(.+)/(manifests|blobs)/(.+)")
_RANGE = re.compile(r"bytes=([0-9]+)-")


def image_of(repository: str) -> MadeImage:
    """Return the image of a repository: it has two files with its name."""
    layer = tar_of([entry("etc"), entry("etc/name", repository.encode()), entry("bin")])
    config = {
        "Env": ["PATH=/bin", f"NAME={repository}"],
        "Entrypoint": ["/bin/run"],
        "Cmd": ["--help"],
        "WorkingDir": "/work",
        "Labels": {"org.example.name": repository},
    }
    return make_image([layer], config=config)


class Registry(ServerThread):
    """A registry of every repository except those below `missing/`, each with the tag `1`.

    `requests` has a line for each request: method, path, user of the login, first byte of a range.
    """

    def __init__(self) -> None:
        """Listen on a free port of the loopback."""
        self.requests: list[str] = []
        registry = self

        class Handler(_Handler):
            pass

        Handler.registry = registry
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        super().__init__(server)


def _content(image: MadeImage, kind: str, reference: str) -> tuple[bytes, dict[str, str]] | None:
    """Return a manifest or a blob and its headers, or None if the image does not have it."""
    if kind == "blobs":
        blobs = {str(digest): content for digest, content in image.blobs.items()}
        return (blobs[reference], {}) if reference in blobs else None
    if reference not in {"1", str(image.digest)}:
        return None
    headers = {"Content-Type": image.media_type, "Docker-Content-Digest": str(image.digest)}
    return image.manifest, headers


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def log_message(self, *args: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Answer with the body."""
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        match = _PATH.fullmatch(self.path)
        user, start = self._user(), self._start()
        self.registry.requests.append(f"{self.command} {self.path} {user} {start}".rstrip())
        if match is None or match[1].startswith("missing/"):
            return self._send(404, b'{"errors": [{"code": "NAME_UNKNOWN"}]}')
        repository, kind, reference = match.groups()
        if repository.startswith("closed/") and not user:
            return self._send(401, b'{"errors": []}', {"WWW-Authenticate": 'Basic realm="here"'})
        answer = _content(image_of(repository), kind, reference)
        if answer is None:
            unknown = "MANIFEST_UNKNOWN" if kind == "manifests" else "BLOB_UNKNOWN"
            return self._send(404, b'{"errors": [{"code": "%s"}]}' % unknown.encode())
        content, headers = answer
        if start:
            size = len(content)
            headers = {**headers, "Content-Range": f"bytes {start}-{size - 1}/{size}"}
            return self._send(206, content[start:], headers, with_body=with_body)
        return self._send(200, content, headers, with_body=with_body)

    def _user(self) -> str:
        """Return the user of a valid login, else ""."""
        scheme, _, text = self.headers.get("Authorization", "").partition(" ")
        user, _, password = base64.b64decode(text).decode().partition(":")
        return user if scheme == "Basic" and PASSWORDS.get(user) == password else ""

    def _start(self) -> int:
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        return int(match[1]) if match else 0

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        *,
        with_body: bool = True,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)
