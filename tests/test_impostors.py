"""No part of the program sends a byte to a server that cannot prove its identity.

These tests also run with the oldest versions of the libraries that `pyproject.toml` allows; see
`tests/test_oldest_versions.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_twisted
from celery import Celery
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from shiftergw.cli.exchange import TlsUnproven
from shiftergw.cli.exchange_twisted import TwistedExchange
from shiftergw.cli.exits import NoGateway
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from shiftergw.errors import PullError, RegistryUntrusted, RetryLater, Unavailable
from shiftergw.model.images import Platform
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import RegistryLogin
from shiftergw.model.uploads import ImageFile
from shiftergw.mongo.address import MongoAddress
from shiftergw.mongo.connector import PrimaryConnector
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.threads import Threads
from shiftergw.sources.registry.reader import Limits
from shiftergw.sources.registry.retry import Patience
from shiftergw.sources.user_files import spool_client
from shiftergw.sources.user_files.spool_client import SpoolClient
from shiftergw.work.celery.app import connect_once, make_app
from shiftergw.work.celery.broker_errors import translate_error
from tests.certificates import Authority
from tests.cli.clients import with_standard_library
from tests.images import make_image, tar_of
from tests.impostors import (
    ADDRESS_IMPOSTORS,
    IMPOSTORS,
    Impostor,
    Listener,
    host_name,
    listening,
)
from tests.registries import Ask, FakeRegistry
from tests.sources.registry.network import REACTOR, ConnectProxy, Network, open_client, quiet

PASSWORD = "s3cret"
LOGIN = RegistryLogin("alice", PASSWORD)
REFERENCE = ImageReference.parse("team/app")
IMAGE = make_image([tar_of({"a": b"a"})])
SEAL = Seal(b"k" * 32)
LIMIT = 20.0
"""Seconds for a server of the loopback: a busy machine may take some."""

Connect = Callable[[str, int, Authority], Awaitable[str]]
"""Connects to a host and port, trusting an authority; returns why that fails."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that the clients of these tests trust."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fail a test that logs a traceback, or writes one on stderr."""
    with capturedLogs() as log:
        yield
    assert [event for event in log if "log_failure" in event] == []
    assert "Traceback" not in capfd.readouterr().err


async def registry_error(
    url: str, authority: Authority, login: RegistryLogin | None = None, **environment: str
) -> str:
    """Return the name of the error class, the text and the detail of a refused registry."""
    async with open_client(
        url,
        Network({"localhost": ["127.0.0.1"], "registry.example.com": ["127.0.0.1"]}),
        cacert=authority.pem,
        environment=environment,
        patience=Patience(tries=1),
        limits=Limits(),
        trusted_hosts=("registry.example.com",),
    ) as client:
        with pytest.raises((RegistryUntrusted, RetryLater)) as caught:
            await client.resolve(REFERENCE, Platform(), login, quiet)
    assert caught.value.remedy
    return f"{type(caught.value).__name__}: {caught.value} {caught.value.detail}"


async def to_registry(host: str, port: int, authority: Authority) -> str:
    """Request an image from a registry."""
    return await registry_error(f"https://{host}:{port}", authority, LOGIN)


async def through_proxy(host: str, port: int, authority: Authority) -> str:
    """Request an image from a registry behind a proxy."""
    proxy = await ConnectProxy().start()
    try:
        return await registry_error(
            f"https://{host}:{port}", authority, LOGIN, https_proxy=proxy.host
        )
    finally:
        await proxy.stop()


async def _error_behind(misbehave: Callable[[Ask], object], authority: Authority) -> str:
    registry = await FakeRegistry(IMAGE, misbehave=misbehave).start()
    try:
        return await registry_error(f"http://{registry.host}", authority, LOGIN)
    finally:
        await registry.stop()


async def to_token_service(host: str, port: int, authority: Authority) -> str:
    """Request a token from the token service of a registry, with a login."""
    challenge = f'Bearer realm="https://{host}:{port}/token",service="test"'
    return await _error_behind(lambda ask: ask.answer(401, WWW_Authenticate=challenge), authority)


async def to_object_store(host: str, port: int, authority: Authority) -> str:
    """Follow a redirect to the object store of a registry."""
    location = f"https://{host}:{port}/manifest?signature={PASSWORD}"
    return await _error_behind(lambda ask: ask.answer(307, Location=location), authority)


async def to_mongodb(host: str, port: int, authority: Authority) -> str:
    """Log in to a MongoDB server."""
    uri = f"mongodb://alice:{PASSWORD}@{host}:{port}/?tls=true&tlsCAFile={authority.pem}"
    with pytest.raises(Unavailable) as caught:
        await PrimaryConnector(REACTOR, MongoAddress.parse(uri), LIMIT).open()
    return f"Unavailable: {caught.value.detail}"


def _connection_error(app: Celery) -> Exception | None:
    with app.connection_for_write() as connection:
        try:
            connect_once(connection)
        except Exception as error:  # noqa: BLE001 - the test examines it
            return error
    return None


async def to_broker(host: str, port: int, authority: Authority) -> str:
    """Log in to a broker."""
    url = f"amqps://alice:{PASSWORD}@{host}:{port}//?cacertfile={authority.pem}"
    error = await deferToThread(_connection_error, make_app(url))
    assert error is not None
    return f"Unavailable: {translate_error(error)} {translate_error(error).detail}"


async def to_gateway(host: str, port: int, authority: Authority) -> str:
    """Request the list of images from a gateway, as the command line does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority.pem))
        url = f"https://{host}:{port}"
        with pytest.raises(NoGateway) as caught:
            await Remote(
                TwistedExchange(REACTOR), Settings([url], ["mycluster"], "good:ann")
            ).images()
    return f"NoGateway: {caught.value}"


async def to_gateway_quickly(host: str, port: int, authority: Authority) -> str:
    """Request the list of images from a gateway by the client of the standard library.

    That client does not explain a refused certificate; `to_gateway` does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority.pem))
        settings = Settings([f"https://{host}:{port}"], ["mycluster"], "good:ann")
        with pytest.raises((NoGateway, TlsUnproven)) as caught:
            await with_standard_library(settings, Remote.images)
    return type(caught.value).__name__


async def to_spool(host: str, port: int, authority: Authority) -> str:
    """Fetch an upload from the gateway, as a worker on another machine does."""
    threads = Threads(REACTOR, 2, "test")
    threads.startService()
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as directory:
        patch.setenv("SSL_CERT_FILE", str(authority.pem))
        patch.setattr(spool_client, "TRIES", 1)
        client = SpoolClient(f"https://{host}:{port}", lambda: SEAL, threads, REACTOR)
        file = ImageFile("a" * 32, "sif", 10, "b" * 64)
        try:
            with pytest.raises((PullError, RetryLater)) as caught:
                await client.fetch("mycluster", file, Path(directory, "file"), lambda _: None)
        finally:
            await client.close()
            await threads.stopService()
    assert caught.value.remedy
    return f"{type(caught.value).__name__}: {caught.value} {caught.value.detail}"


WAYS = [
    to_registry,
    through_proxy,
    to_token_service,
    to_object_store,
    to_mongodb,
    to_broker,
    to_gateway,
    to_gateway_quickly,
    to_spool,
]


async def refusal(
    connect: Connect, impostor: Impostor, host: str, authority: Authority, directory: Path
) -> str:
    """Return the reason why a client refuses a server, which must not receive a byte of it."""
    async with listening(impostor.make(authority, directory, host)) as listener:
        reason = await connect(host, listener.port, authority)
    assert bytes(listener.plaintext) == b""
    assert listener.connections == 1
    assert PASSWORD not in reason
    return reason


def check_words(connect: Connect, reason: str, impostor: Impostor) -> None:
    """Check that a reason names the fault of the certificate."""
    if connect is to_gateway_quickly:
        assert reason == "TlsUnproven"
        return
    if connect is to_broker:  # in the words of Python's ssl
        assert "certificate" in reason
        assert "verify failed" in reason
        return
    assert impostor.words in reason
    if connect in {to_mongodb, to_gateway}:
        return
    if connect is to_spool:
        assert reason.startswith("PullError: The worker cannot fetch the upload")
        return
    assert reason.startswith("RegistryUntrusted")
    assert "he registry 'test'" in reason  # or its token service
    assert "serial" in reason


@pytest.mark.parametrize("connect", WAYS)
@pytest.mark.parametrize("kind", IMPOSTORS)
@pytest_twisted.ensureDeferred
async def test_host_names(
    connect: Connect, kind: str, authority: Authority, tmp_path: Path
) -> None:
    """A server with a certificate for another host, or an untrusted one, receives no byte."""
    impostor = IMPOSTORS[kind]
    reason = await refusal(connect, impostor, "localhost", authority, tmp_path)
    check_words(connect, reason, impostor)


@pytest.mark.parametrize("connect", WAYS)
@pytest.mark.parametrize("kind", ADDRESS_IMPOSTORS)
@pytest_twisted.ensureDeferred
async def test_addresses(connect: Connect, kind: str, authority: Authority, tmp_path: Path) -> None:
    """A certificate must list a host that is an IP address as an IP address."""
    impostor = ADDRESS_IMPOSTORS[kind]
    reason = await refusal(connect, impostor, "127.0.0.1", authority, tmp_path)
    check_words(connect, reason, impostor)


async def connected_server(
    connect: Connect, host: str, pem: Path, authority: Authority
) -> Listener:
    """Connect a client to a server with a certificate; return the server."""
    async with listening(pem) as listener:
        await connect(host, listener.port, authority)
    return listener


@pytest.mark.parametrize("connect", WAYS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_the_right_server(connect: Connect, host: str, authority: Authority) -> None:
    """A server with a certificate for the host is accepted, and its received bytes are counted."""
    server = await connected_server(
        connect, host, authority.server_file(host_name(host)), authority
    )
    assert server.plaintext


@pytest.mark.parametrize(
    ("name", "is_accepted"),
    [
        ("registry.example.com", True),
        ("REGISTRY.Example.com", True),
        ("*.example.com", True),
        ("*.com", False),
        ("*.*.com", False),
        ("registry.*.com", False),
        ("r*.example.com", False),
        ("*.registry.example.com", False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_wildcards(name: str, is_accepted: bool, authority: Authority) -> None:
    """A wildcard matches exactly one label, which is the first of three or more."""
    pem = authority.server_file(host_name(name))
    server = await connected_server(to_registry, "registry.example.com", pem, authority)
    assert bool(server.plaintext) is is_accepted
