"""Proxies of the environment are used, and only the proxies get their credentials."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import (
    ConfigurationError,
    RegistryUnavailable,
    RegistryUntrusted,
    RetryLater,
)
from shiftergw.model.images import Descriptor, Digest, Platform, ResolvedImage
from shiftergw.model.references import ImageReference
from shiftergw.plumbing.timing import pause
from shiftergw.sources.registry.client import RegistryClient
from shiftergw.sources.registry.location import WebOrigin
from shiftergw.sources.registry.proxy import Proxies, Proxy
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.retry import Patience
from tests.certificates import Authority
from tests.images import make_image, tar_of
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import (
    PUBLIC,
    REACTOR,
    ConnectProxy,
    Network,
    Sink,
    open_client,
    quiet,
)

IMAGE = make_image([tar_of({"a": b"a"})])
REFERENCE = ImageReference.parse("team/app")
ONE_TRY = Patience(tries=1)
HUB = WebOrigin("https", "registry.example", 443)


async def resolve(client: RegistryClient) -> Digest:
    """Return the digest of an image."""
    image, _ = await client.resolve(REFERENCE, Platform(), None, quiet)
    return image.digest


# The environment


@pytest.mark.parametrize(
    ("environment", "https", "http"),
    [
        ({}, None, None),
        ({"https_proxy": "http://p:1"}, Proxy("p", 1), None),
        ({"HTTPS_PROXY": "p:1/"}, Proxy("p", 1), None),
        ({"https_proxy": "", "HTTPS_PROXY": "http://p"}, Proxy("p", 80), None),
        ({"http_proxy": "http://[::1]:3128"}, None, Proxy("::1", 3128)),
        ({"HTTP_PROXY": "http://p:1"}, None, None),
    ],
)
def test_variables(environment: dict[str, str], https: Proxy | None, http: Proxy | None) -> None:
    """Variables count in lower and upper case, except `HTTP_PROXY`."""
    proxies = Proxies(environment)
    assert proxies.proxy_for(HUB) == https
    assert proxies.proxy_for(WebOrigin("http", "registry.example", 80)) == http


def test_credentials() -> None:
    """User and password of the URL become Basic, percent-decoded, and are shown nowhere."""
    proxies = Proxies({"https_proxy": "http://us%40er:p%C3%A4ss%3A@p:1"})
    proxy = proxies.proxy_for(HUB)
    assert proxy is not None
    secret = base64.b64encode("us@er:päss:".encode())
    assert proxy.authorization == b"Basic " + secret
    assert secret.decode() not in repr(proxy)


@pytest.mark.parametrize(
    "url", ["socks5://u:s3cret@p:1", "http://u:s3cret@p:x", "https://p", "http://"]
)
def test_values_that_are_not_a_proxy(url: str) -> None:
    """Anything but an HTTP proxy is a fault of the configuration; its password is not repeated."""
    with pytest.raises(ConfigurationError) as caught:
        Proxies({"https_proxy": url})
    assert "s3cret" not in f"{caught.value} {caught.value.detail}"


@pytest.mark.parametrize(
    ("no_proxy", "origin", "direct"),
    [
        ("nersc.gov", "https://nersc.gov", True),
        ("nersc.gov", "https://registry.nersc.gov", True),
        ("nersc.gov", "https://evilnersc.gov", False),
        (".nersc.gov", "https://registry.nersc.gov", True),
        ("*.nersc.gov", "https://registry.nersc.gov", True),
        ("NERSC.gov", "https://Registry.NERSC.gov", True),
        ("a, nersc.gov ,b", "https://nersc.gov", True),
        ("nersc.gov:5000", "https://nersc.gov:5000", True),
        ("nersc.gov:5000", "https://nersc.gov", False),
        ("*", "https://anything", True),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3", "https://10.1.2.3:5000", True),
        ("10.0.0.0/8", "https://registry.example", False),
        ("fd00::/8", "https://[fd00::1]", True),
        ("[fd00::1]:5000", "https://[fd00::1]:5000", True),
        ("::1", "https://[::1]", True),
        (".", "https://anything", False),
        (",", "https://anything", False),
    ],
)
def test_no_proxy(no_proxy: str, origin: str, direct: bool) -> None:
    """`no_proxy` matches whole names, domains at a dot, ports, networks, and everything."""
    proxies = Proxies({"https_proxy": "http://p:1", "NO_PROXY": no_proxy})
    assert (proxies.proxy_for(WebOrigin.of(origin)) is None) == direct


# CONNECT


@pytest_twisted.ensureDeferred
async def test_connect(tmp_path: Path) -> None:
    """An https registry is reached through the proxy; its certificate is still verified."""
    authority = Authority(tmp_path)
    proxy = await ConnectProxy("Basic " + base64.b64encode(b"user:s3cret").decode()).start()
    registry = await FakeRegistry(IMAGE).start(authority.options("registry.example"))
    port = registry.host.rpartition(":")[2]
    url = f"https://registry.example:{port}"
    environment = {"https_proxy": f"http://user:s3cret@{proxy.host}"}
    try:
        async with open_client(
            url, Network({}), environment=environment, cacert=authority.pem
        ) as client:
            assert await resolve(client) == IMAGE.digest
            image, _ = await client.resolve(REFERENCE, Platform(), None, quiet)
            sink = Sink()
            await client.blob(image, image.layers[0], None, quiet, 0, sink)
        async with open_client(url, environment=environment) as client:
            with pytest.raises(RegistryUntrusted, match="not trusted"):
                await resolve(client)
    finally:
        await registry.stop()
        await proxy.stop()
    assert Digest.of(bytes(sink.content)) == image.layers[0].digest
    assert len(proxy.lines) == 2  # one tunnel served all three requests
    assert proxy.lines[0][:2] == [
        f"CONNECT registry.example:{port} HTTP/1.1",
        f"Host: registry.example:{port}",
    ]
    assert registry.requests[0].header("Proxy-Authorization") is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "status 407"),
        (b"HTTP/1.0 503\r\n\r\n", "status 503"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 20\r\n\r\n", "not HTTP"),
        (b"x" * 20_000, "too long a header"),
        (b"HTTP/1.1 200 OK\r\n\r\nnot TLS", "does not speak TLS"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_proxy_that_refuses(answer: bytes, expected: str) -> None:
    """The error has the proxy's answer, but not the password."""
    proxy = await ConnectProxy(answer=answer).start()
    environment = {"https_proxy": f"http://user:s3cret@{proxy.host}"}
    try:
        async with open_client(
            "https://registry.example", environment=environment, patience=ONE_TRY
        ) as client:
            with pytest.raises((RegistryUnavailable, RetryLater), match=expected) as caught:
                await resolve(client)
    finally:
        await proxy.stop()
    assert "s3cret" not in f"{caught.value} {caught.value.detail} {caught.value.__cause__!r}"


@pytest_twisted.ensureDeferred
async def test_a_proxy_that_hangs_up_or_is_silent() -> None:
    """A wait for a silent proxy has a limit, and can be cancelled."""
    proxy = await ConnectProxy(answer=b"HTTP/1.1 200").start()
    environment = {"https_proxy": f"http://{proxy.host}"}
    try:
        async with open_client(
            "https://registry.example", environment=environment, patience=ONE_TRY
        ) as client:
            with pytest.raises(RetryLater, match="does not answer"):
                await resolve(client)
            running = Deferred.fromCoroutine(resolve(client))
            await pause(0.1, REACTOR)
            for connection in tuple(proxy.connections):
                assert connection.transport is not None
                connection.transport.loseConnection()
            with pytest.raises(RetryLater, match="broke the connection"):
                await running
            running = Deferred.fromCoroutine(resolve(client))
            await pause(0.1, REACTOR)
            running.cancel()
            with pytest.raises(CancelledError):
                await running
    finally:
        await proxy.stop()


@pytest_twisted.ensureDeferred
async def test_targets_behind_a_proxy(tmp_path: Path) -> None:
    """If the proxy resolves names, private addresses and local names are still refused."""
    authority = Authority(tmp_path)
    proxy = await ConnectProxy().start()
    registry = await FakeRegistry(IMAGE).start(authority.options("registry.example"))
    port = registry.host.rpartition(":")[2]
    blob = Descriptor(IMAGE.digest, 5)
    image = ResolvedImage(IMAGE.digest, IMAGE.digest, blob, (blob,), "test", "team/app")
    try:
        async with open_client(
            f"https://registry.example:{port}",
            environment={"https_proxy": f"http://{proxy.host}"},
            cacert=authority.pem,
        ) as client:
            for host in ("localhost", "127.0.0.1", "127.1", "[::1]", "10.0.0.1", "db.internal"):
                target = f"https://{host}/x"
                registry.misbehave = partial(Ask.answer, status=307, Location=target)
                with pytest.raises(RegistryUntrusted, match="not public"):
                    await client.blob(image, blob, None, quiet, 0, Sink())
    finally:
        await registry.stop()
        await proxy.stop()
    assert {line[0] for line in proxy.lines} == {f"CONNECT registry.example:{port} HTTP/1.1"}


OWN = {"registry.example": [PUBLIC]}
SITE = {
    **OWN,
    "cdn.test": ["8.8.8.8"],
    "meta.test": ["169.254.169.254"],
    "two.test": [PUBLIC, "::1"],
}
NO_NAMES: dict[str, list[str]] = {}


@pytest.mark.parametrize(
    ("names", "host", "options", "refusal"),
    [
        (SITE, "cdn.test", {}, None),
        (SITE, "meta.test", {}, "not public"),
        (SITE, "two.test", {}, "not public"),
        (SITE, "meta.test", {"trusted_hosts": ("meta.test",)}, None),
        (SITE, "meta.test", {"proxied_hosts": ("*.example",)}, "not public"),
        (SITE, "cdn.test", {"proxied_hosts": ("*.example",)}, None),
        (SITE, "only-proxy.test", {}, "has no address"),
        (SITE, "only-proxy.test", {"proxied_hosts": ("*.test",)}, None),
        (NO_NAMES, "only-proxy.test", {}, None),
        (NO_NAMES, "only-proxy.test", {"proxied_hosts": ()}, "may not be asked for"),
        (NO_NAMES, "only-proxy.test", {"proxied_hosts": ("x.test",)}, "may not be asked for"),
        (NO_NAMES, "only-proxy.test", {"proxied_hosts": ("only-proxy.test:1",)}, "may not be"),
        (NO_NAMES, "only-proxy.test", {"proxied_hosts": ("only-proxy.test",)}, None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_names_behind_a_proxy(
    names: dict[str, list[str]],
    host: str,
    options: dict[str, Any],
    refusal: str | None,
    tmp_path: Path,
) -> None:
    """A name that the proxy will resolve is judged by its addresses here, or by `ProxiedHosts`."""
    authority = Authority(tmp_path)
    proxy = await ConnectProxy().start()
    registry = await FakeRegistry(IMAGE).start(authority.options("registry.example", host))
    port = registry.host.rpartition(":")[2]
    registry.misbehave = lambda ask: (
        ask.header("Host") == f"registry.example:{port}"
        and ask.answer(307, Location=f"https://{host}:{port}{ask.path}")
    )
    try:
        async with open_client(
            f"https://registry.example:{port}",
            Network(names),
            environment={"https_proxy": f"http://{proxy.host}"},
            cacert=authority.pem,
            patience=ONE_TRY,
            limits=Limits(),
            **options,
        ) as client:
            if refusal is None:
                assert await resolve(client) == IMAGE.digest
            else:
                with pytest.raises((RegistryUntrusted, RetryLater), match=refusal):
                    await resolve(client)
    finally:
        await registry.stop()
        await proxy.stop()
    hosts = [line[0].split(" ")[1] for line in proxy.lines]
    assert hosts[0] == f"registry.example:{port}"
    assert hosts[1:] == ([] if refusal else [f"{host}:{port}"])


# Plain http


@pytest_twisted.ensureDeferred
async def test_plain_http_without_credentials() -> None:
    """A proxy that has no login in its URL gets none."""
    proxy = await FakeRegistry(IMAGE).start()
    environment = {"http_proxy": f"http://{proxy.host}"}
    try:
        async with open_client("http://registry.example", environment=environment) as client:
            assert await resolve(client) == IMAGE.digest
    finally:
        await proxy.stop()
    assert proxy.requests[0].header("Proxy-Authorization") is None
    assert proxy.requests[0].header("Host") == "registry.example"


@pytest_twisted.ensureDeferred
async def test_plain_http() -> None:
    """A request to an http location has the whole URL and the credentials of the proxy."""
    proxy = await FakeRegistry(IMAGE).start()
    environment = {"http_proxy": f"http://user:s3cret@{proxy.host}"}
    try:
        async with open_client("http://registry.example:5000", environment=environment) as client:
            assert await resolve(client) == IMAGE.digest
            assert await resolve(client) == IMAGE.digest
    finally:
        await proxy.stop()
    first = proxy.requests[0]
    assert first.path == "http://registry.example:5000/v2/team/app/manifests/latest"
    assert first.header("Host") == "registry.example:5000"
    assert (
        first.header("Proxy-Authorization") == "Basic " + base64.b64encode(b"user:s3cret").decode()
    )
    assert first.header("Authorization") is None
    assert len({ask.request.getClientAddress().port for ask in proxy.requests}) == 1
