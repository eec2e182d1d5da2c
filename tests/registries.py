"""Registries for tests: that of the distribution project, and a fake that can misbehave."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from shiftergw.model.images import Digest
from shiftergw.model.requests import RegistryLogin
from shiftergw.plumbing.timing import pause
from tests import children
from tests.images import MadeImage
from tests.parts import free_port, need, wait_for_port
from tests.patience import patient

USER = RegistryLogin("alice", "s3:crét")
"""A login that a private `DockerRegistry` accepts."""

SECOND_USER = RegistryLogin("bob", "b0b:s")
"""Another login that it accepts."""

_HTPASSWD = (
    "alice:$2b$04$AQAQdM2qGLtMLHfz/9YoNu0BmriWJhEZbJXVt6lzEYgPGMzi5aJe.\n"
    "bob:$2b$04$AQAQdM2qGLtMLHfz/9YoNuoePTZb6B8RkGyKSuiHV6JCSLHRqV2Ca\n"
)


class DockerRegistry:
    """The program `docker-registry` on a free port of the loopback.

    `host` is `127.0.0.1:PORT`. With `private` it requires `USER` or `SECOND_USER`, by HTTP Basic.
    `certificate` is a file with its certificate and key, without which it speaks plain HTTP; it
    requires client certificates of `client_authority`, if that is given. With `mirrored_url` it is
    a pull-through cache of another registry. `auth` is this section of its configuration.
    """

    def __init__(
        self,
        directory: Path,
        *,
        private: bool = False,
        certificate: Path | None = None,
        client_authority: Path | None = None,
        mirrored_url: str = "",
        accepts_schema_1: bool = False,
        auth: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare a registry that stores images and its configuration in `directory`."""
        self._certificate = certificate
        self._client_authority = client_authority
        self._mirrored_url = mirrored_url
        self._program = need("docker-registry")
        self._skopeo = need("skopeo")
        self._directory = directory
        self._access_log = directory / "access.log"
        self._private = private
        self._auth = auth
        self._accepts_schema_1 = accepts_schema_1
        self._process: subprocess.Popen[bytes] | None = None
        port = free_port()
        self.host = f"127.0.0.1:{port}"
        self._port = port

    def __enter__(self) -> Self:
        """Start the registry and wait until it listens."""
        self._directory.mkdir(parents=True, exist_ok=True)
        configuration: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self._directory / "registry")}},
            "http": {"addr": self.host},
        }
        if self._accepts_schema_1:
            configuration["compatibility"] = {"schema1": {"enabled": True}}
        if self._auth is not None:
            configuration["auth"] = self._auth
        elif self._private:
            htpasswd = self._directory / "htpasswd"
            htpasswd.write_text(_HTPASSWD)
            configuration["auth"] = {"htpasswd": {"realm": "tests", "path": str(htpasswd)}}
        if self._certificate is not None:
            tls = {"certificate": str(self._certificate), "key": str(self._certificate)}
            configuration["http"]["tls"] = tls
            if self._client_authority is not None:
                configuration["http"]["tls"] |= {"clientcas": [str(self._client_authority)]}
        if self._mirrored_url:
            configuration["proxy"] = {"remoteurl": self._mirrored_url}
        file = self._directory / "config.yml"  # JSON is YAML
        file.write_text(json.dumps(configuration))
        with self._access_log.open("wb") as log:
            self._process = children.start(
                [self._program, "serve", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.DEVNULL,
            )
        wait_for_port(self._port)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the registry."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(patient(10))

    def blob_requests(self) -> int:
        """Return the number of GET requests for blobs since the start."""
        return len(self.blobs_asked_for())

    def blobs_asked_for(self) -> list[str]:
        """Return the digests in the GET requests for blobs since the start."""
        return re.findall(r'"GET \S+/blobs/(\S+) HTTP', self._access_log.read_text())

    def push(self, layout: Path, name: str, tag: str = "latest") -> None:
        """Copy an image or an index with all its images from an OCI layout to `repository:tag`."""
        is_open = not self._private and self._auth is None
        login = [] if is_open else ["--dest-creds", f"{USER.user}:{USER.password}"]
        subprocess.run(
            [
                *[self._skopeo, "--insecure-policy", "copy", "--quiet", "--all"],
                *["--preserve-digests", "--dest-tls-verify=false", *login],
                *[f"oci:{layout}:{tag}", f"docker://{self.host}/{name}"],
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=patient(60),
        )


Misbehave = Callable[["Ask"], object]
"""A function that answers a request; if it returns None, the registry answers it."""


class Ask:
    """A request to a `FakeRegistry`, with methods that answer it well or badly."""

    def __init__(self, registry: FakeRegistry, request: Request) -> None:
        """Wrap a request of twisted.web; `nth` is its number among those to `path`, from 1."""
        self.registry = registry
        self.request = request
        self.path = request.uri.decode("ascii")
        self.method = request.method.decode("ascii")
        self.nth = 1 + sum(ask.path == self.path for ask in registry.requests)

    def header(self, name: str) -> str | None:
        """Return a header field of the request."""
        return self.request.getHeader(name)

    def answer(self, status: int, content: bytes = b"", **fields: str) -> bool:
        """Answer completely; underscores in the names of header fields become hyphens."""
        self.request.setResponseCode(status)
        for name, value in fields.items():
            self.request.setHeader(name.replace("_", "-"), value)
        self.request.setHeader("Content-Length", str(len(content)))
        if self.method != "HEAD":
            self.request.write(content)
        self.request.finish()
        return True

    def begin(self, content: bytes, length: int, status: int = 200, **fields: str) -> bool:
        """Answer with a `Content-Length` and the first bytes of a body, without its end."""
        self.request.setResponseCode(status)
        for name, value in fields.items():
            self.request.setHeader(name.replace("_", "-"), value)
        self.request.setHeader("Content-Length", str(length))
        self.request.write(content)
        return True

    def hang_up(self, *, reset: bool = False) -> bool:
        """Close the connection after the bytes that were written, or reset it at once."""
        transport: Any = self.request.transport
        (transport.abortConnection if reset else transport.loseConnection)()
        return True


class FakeRegistry:
    """A registry on the test's own reactor, which answers correctly unless `misbehave` does.

    `requests` has every request. `start` and `stop` open and close the port; with a `certificate`
    the registry uses TLS. Images are served under every repository name, by digest and by their
    `tags`.
    """

    def __init__(self, *images: MadeImage, misbehave: Misbehave | None = None) -> None:
        """Serve the manifests and blobs of `images`, the first of them as `latest`."""
        self.misbehave = misbehave or (lambda _: None)
        self.requests: list[Ask] = []
        self.documents: dict[str, tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.host = ""
        self._port: Any = None
        self._clock: Any = installed_reactor
        self._open: set[HTTPChannel] = set()
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

    async def start(self, certificate: CertificateOptions | None = None) -> Self:
        """Listen on a free port of the loopback."""
        reactor = self._clock
        site: Any = Site(_RegistryResource(self))
        site.protocol = lambda: _Channel(self._open)
        if certificate is None:
            self._port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
        else:
            self._port = reactor.listenSSL(0, site, certificate, interface="127.0.0.1")
        self.host = f"127.0.0.1:{self._port.getHost().port}"
        return self

    async def stop(self) -> None:
        """Close the port and all connections."""
        await self._port.stopListening()
        while self._open:
            for channel in tuple(self._open):
                channel.forceAbortClient()
            await pause(0.01, self._clock)

    def respond(self, ask: Ask) -> None:
        """Answer as a registry should (distribution-spec, "Pull")."""
        path = ask.path.partition("?")[0]
        if "/manifests/" in path:
            reference = path.rpartition("/")[2]
            digest = self.tags.get(reference, reference)
            if digest in self.documents:
                content, media_type = self.documents[digest]
                ask.answer(200, content, Content_Type=media_type, Docker_Content_Digest=digest)
                return
        blob = self.blobs.get(path.rpartition("/")[2])
        if blob is None:
            errors = [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]
            ask.answer(404, json.dumps({"errors": errors}).encode())
            return
        byte_range = ask.header("Range")
        if byte_range is None:
            ask.answer(200, blob)
            return
        start = int(byte_range.removeprefix("bytes=").removesuffix("-"))
        if start >= len(blob):
            ask.answer(416, Content_Range=f"bytes */{len(blob)}")
            return
        ask.answer(206, blob[start:], Content_Range=f"bytes {start}-{len(blob) - 1}/{len(blob)}")


class _Channel(HTTPChannel):
    """A connection that is in a set while it is open; requests may have long lines."""

    MAX_LENGTH = 64 << 10
    totalHeadersSize = 64 << 10  # noqa: N815 - Twisted's name

    def __init__(self, connections: set[HTTPChannel]) -> None:
        super().__init__()
        self._connections = connections

    def connectionMade(self) -> None:
        super().connectionMade()
        self._connections.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._connections.discard(self)
        super().connectionLost(reason)


class _RegistryResource(Resource):
    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self, registry: FakeRegistry) -> None:
        super().__init__()
        self._registry = registry

    def render(self, request: Request) -> int:
        finish: Deferred[None] = request.notifyFinish()
        finish.addErrback(lambda _: None)
        ask = Ask(self._registry, request)
        if not self._registry.misbehave(ask):
            self._registry.respond(ask)
        self._registry.requests.append(ask)
        return NOT_DONE_YET
