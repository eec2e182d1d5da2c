"""Answers of every kind from a registry are bounded in bytes, lines and time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from shiftergw.errors import PullError, RegistryUnavailable, RetryLater
from shiftergw.model.images import Descriptor, Digest, Platform, ResolvedImage
from shiftergw.model.postponement import Breaker
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.sources.registry.admission import Admission
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.documents import Documents
from shiftergw.sources.registry.location import Location
from shiftergw.sources.registry.proxy import Proxies
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.retry import Interruption, Patience, RegistryRetries
from shiftergw.sources.registry.shared_breakers import NoBreakers, SharedBreakers
from shiftergw.sources.registry.transport import Transport
from tests.raw_servers import Answer, answering, endless
from tests.sources.registry.network import Network, Sink, open_client, quiet

REFERENCE = ImageReference.parse("team/app")
SINGLE_TRY = Patience(tries=1)
MANIFEST = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n"
LONG = Limits(connect=30, header=60, idle=60)
"""Time limits that no test reaches: each transfer ends for its size."""

SHORT = Limits(header=20, redirects=20, idle=20, document=0.4, explanation=0.2, window=0.3)
"""For drips: one byte in `TICK` seconds, or fewer where the machine is busy."""

TICK = 0.02
MEMORY = 16 << 20
"""Bytes that the sockets of both sides may hold, and ours before they are counted."""


async def resolve(client: RegistryClient, login: RegistryLogin | None = None) -> None:
    """Resolve an image."""
    await client.resolve(REFERENCE, Platform("linux", "amd64"), login, lambda _: None)


async def refusal(url: str, limits: Limits, **environment: str) -> PullError:
    """Return the error of a failed look-up."""
    async with open_client(
        url,
        Network({"registry.example": ["127.0.0.1"]}),
        limits=limits,
        patience=SINGLE_TRY,
        environment=environment,
    ) as client:
        with pytest.raises((RegistryUnavailable, RetryLater)) as caught:
            await resolve(client)
    return caught.value


HEADS: dict[str, tuple[Answer, str]] = {
    "fields": (endless(MANIFEST, b"X: y\r\n" * 1000), "more than 65536 bytes or 512 lines"),
    "long fields": (endless(MANIFEST, b"X: " + b"y" * 9000 + b"\r\n"), "more than 65536 bytes"),
    "a folded field": (endless(MANIFEST, b" y\r\n" * 1000), "more than 65536 bytes"),
    "informational": (endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 99), "more than 65536"),
    "one line": (endless(MANIFEST, b"y" * 9000), "more than 32768 bytes"),
    "a status line": (endless(b"HTTP/1.1 200 ", b"y" * 9000), "more than 32768 bytes"),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("is_proxied", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_head_without_end(kind: str, is_proxied: bool) -> None:
    """An endless head ends the request at once, whatever its content, also through a proxy."""
    answer, words = HEADS[kind]
    async with answering(answer) as server:
        if is_proxied:
            proxy = {"http_proxy": f"127.0.0.1:{server.port}"}
            error = await refusal("http://registry.example", LONG, **proxy)
        else:
            error = await refusal(f"http://127.0.0.1:{server.port}", LONG)
    assert words in error.what
    assert "The registry 'test'" in error.what
    assert server.bytes_sent < MEMORY


CHUNKED_HEAD = MANIFEST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        endless(CHUNKED_HEAD + b"1\r\nx\r\n0\r\n", b"X: y\r\n" * 1000),
        endless(CHUNKED_HEAD + b"1\r\nx\r\n0\r\n", b"y" * 9000),
        endless(CHUNKED_HEAD + b"1;", b"y" * 9000),
        endless(CHUNKED_HEAD, b"0" * 9000),
        endless(CHUNKED_HEAD, b"1\r\nx\r\n" * 9000),
        endless(MANIFEST + b"\r\n", b"{" * 9000),
    ],
    ids=["trailer fields", "a trailer", "an extension", "a size", "chunks", "no length"],
)
@pytest_twisted.ensureDeferred
async def test_a_body_without_end(answer: Answer) -> None:
    """Neither a manifest nor the text between its chunks fills the memory."""
    async with (
        answering(answer) as server,
        open_client(f"http://127.0.0.1:{server.port}", limits=LONG, patience=SINGLE_TRY) as client,
    ):
        with pytest.raises(Exception, match=r"broke off|larger than 4 MiB|pieces"):
            await resolve(client)
    assert server.bytes_sent < MEMORY + (4 << 20)


@pytest.mark.parametrize("tail", [b"\r\n", b"Content-Length: 5000\r\n\r\n"])
@pytest_twisted.ensureDeferred
async def test_a_manifest_that_drips(tail: bytes) -> None:
    """A slow manifest ends after the time for a document, and is not retried."""
    async with answering(endless(MANIFEST + tail, b"{", TICK)) as server:
        limits = Limits(header=20, idle=20, document=0.4, rate=0)
        async with open_client(f"http://127.0.0.1:{server.port}", limits=limits) as client:
            with pytest.raises(RegistryUnavailable, match=r"sent \d+ bytes in \d+ s") as caught:
                await resolve(client)
    assert not isinstance(caught.value, Interruption)
    assert "RegistryDocumentTime" in (caught.value.remedy or "")
    assert len(server.heads) == 1


@pytest_twisted.ensureDeferred
async def test_a_manifest_below_the_least_rate() -> None:
    """A manifest below the least rate is retried later, without quick tries before."""
    async with answering(endless(MANIFEST + b"\r\n", b"{", TICK)) as server:
        limits = Limits(header=20, idle=20, document=600, rate=10_000, document_window=0.3)
        async with open_client(f"http://127.0.0.1:{server.port}", limits=limits) as client:
            with pytest.raises(RetryLater, match=r"sent \d+ bytes in") as caught:
                await resolve(client)
    assert caught.value.why == "test (too slow)"
    assert len(server.heads) == 1


@pytest_twisted.ensureDeferred
async def test_a_head_that_drips() -> None:
    """A head has a total time."""
    async with answering(endless(MANIFEST, b"X: y\r\n", TICK)) as server:
        limits = Limits(header=0.4, idle=20)
        error = await refusal(f"http://127.0.0.1:{server.port}", limits)
    assert "does not answer within 0 s" in error.what


@pytest_twisted.ensureDeferred
async def test_a_chain_of_redirects_that_drips() -> None:
    """All redirects together have a total time; their bodies are not read to the end."""

    def redirect(send: Any, head: bytes) -> None:
        path = head.split(b" ")[1]
        if len(server.heads) > 2:
            endless(b"", b"H", TICK)(send, head)
        send(b"HTTP/1.1 307 Over there\r\nContent-Length: 99\r\n")
        send(b"Location: " + path + b"x\r\n\r\n")
        endless(b"", b"?", TICK)(send, head)

    async with answering(redirect) as server:
        limits = Limits(header=20, redirects=0.8, idle=20, document=60, explanation=0.2)
        error = await refusal(f"http://127.0.0.1:{server.port}", limits)
    assert "does not answer within" in error.what
    assert len(server.heads) <= 3


@pytest.mark.parametrize("status", [b"401 Who", b"404 What", b"429 Later", b"500 Oh", b"418 Tea"])
@pytest_twisted.ensureDeferred
async def test_an_error_that_drips(status: bytes) -> None:
    """The status of an error counts; a slow body of an error is not read to the end."""
    begin = b"HTTP/1.1 " + status + b"\r\nContent-Length: 9999\r\n\r\n"
    async with (
        answering(endless(begin, b"{", TICK)) as server,
        open_client(f"http://127.0.0.1:{server.port}", limits=SHORT, patience=SINGLE_TRY) as client,
    ):
        with pytest.raises(Exception, match=r"The registry 'test' (?!is too slow)"):
            await resolve(client)


@pytest_twisted.ensureDeferred
async def test_a_token_that_drips() -> None:
    """A token service has the time for a document, and the login is sent once."""

    def answer(send: Any, head: bytes) -> None:
        if b"/token" in head:
            endless(b"HTTP/1.1 200 OK\r\n\r\n", b" ", TICK)(send, head)
        send(b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n")
        realm = b"http://127.0.0.1:%d/token" % server.port
        send(b'WWW-Authenticate: Bearer realm="' + realm + b'"\r\n\r\n')

    async with answering(answer) as server:
        error = await refusal(f"http://127.0.0.1:{server.port}", SHORT)
    assert "too slow" in error.what
    assert len([head for head in server.heads if b"/token" in head]) == 1


@pytest_twisted.ensureDeferred
async def test_a_layer_that_drips() -> None:
    """A slow layer is retried later, without quick tries before."""

    def answer(send: Any, head: bytes) -> None:
        send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n")
        endless(b"", b"x", TICK)(send, head)

    blob = Descriptor(Digest.of(b"x" * 50_000), 50_000)
    image = ResolvedImage(blob.digest, blob.digest, blob, (blob,), "test", "team/app", False)
    async with answering(answer) as server:
        patience = Patience(tries=3, first=0.01)
        async with open_client(
            f"http://127.0.0.1:{server.port}", limits=SHORT, patience=patience
        ) as client:
            with pytest.raises(RetryLater, match=r"too slow: it sent \d+ bytes in"):
                await client.blob(image, blob, None, lambda _: None, 0, Sink())
    assert len(server.heads) == 1


@pytest.mark.parametrize("answer", [endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000)])
@pytest_twisted.ensureDeferred
async def test_a_proxy_whose_head_has_no_end(answer: Answer) -> None:
    """The answer of a proxy to CONNECT is bounded, too."""
    async with answering(answer) as server:
        proxy = {"https_proxy": f"127.0.0.1:{server.port}"}
        error = await refusal("https://registry.example", LONG, **proxy)
    assert "The site's proxy answered with too long a header" in error.what
    assert server.bytes_sent < MEMORY


@pytest_twisted.ensureDeferred
async def test_documents_share_their_time() -> None:
    """The time of one document reduces the time for the next one."""
    clock = Clock()
    transport: Any = SimpleNamespace(clock=clock, limits=Limits(documents=10), subject="It")
    requests: list[Deferred[Any]] = []

    async def ask(*_: Any) -> Any:
        requests.append(Deferred())
        return await requests[-1]

    async def read(*_: Any) -> bytes:
        return b"{}"

    transport.read = read
    repository: Any = SimpleNamespace(ask=ask)
    retries = RegistryRetries(SINGLE_TRY, clock, lambda: 0.5, quiet, cast("Any", None))
    documents = Documents(transport, repository, retries)
    blob = Descriptor(Digest.of(b"{}"), 2)
    first = Deferred.fromCoroutine(documents.config(blob))
    clock.advance(9)
    requests[0].callback(SimpleNamespace(headers=Headers()))
    assert await first == b"{}"
    clock.advance(100)
    second = Deferred.fromCoroutine(documents.config(blob))
    clock.advance(1)
    with pytest.raises(RegistryUnavailable, match="It took more than 10 s"):
        await second
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_a_probe_of_a_slow_registry_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe occupies a worker, so it has less time than the first slow document had."""
    clock = Clock()
    response: Any = SimpleNamespace()
    windows: list[float] = []

    class SlowLately(NoBreakers):
        async def check_breaker(self, key: str, now: float, seconds: float) -> Breaker | None:
            return Breaker(key, now, "slow", 1) if key.startswith("slow") else None

    admission = Admission("test", SharedBreakers(SlowLately()), SINGLE_TRY, clock, lambda: 0.5)
    location = Location("test", "http://a.test")
    for optional in (None, admission):
        transport = Transport(cast("Any", clock), location, Proxies({}, None), Limits(), optional)

        async def read(*arguments: Any) -> bytes:
            windows.append(arguments[-1])
            return b""

        monkeypatch.setattr(transport, "_content", read)
        await transport.read(response, 1)
    assert windows == [3.0, 1.5]
