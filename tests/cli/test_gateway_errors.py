"""The messages for gateways, and servers in front of them, that give no valid answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from shiftergw.cli import gateways
from shiftergw.cli.exchange import uri_of
from shiftergw.cli.exchange_twisted import AnswerTimeout
from shiftergw.cli.exits import GatewayBusy, InvalidRequest, NoGateway, Stop, UnknownName
from shiftergw.cli.gateway_errors import refusal
from shiftergw.cli.hosts import is_host
from shiftergw.cli.proxy import GatewayProxy
from shiftergw.cli.remote import Remote
from shiftergw.cli.settings import Settings
from tests.cli.clients import both_clients
from tests.cli.command import shiftergw
from tests.installed_reactor import reactor
from tests.parts import free_port
from tests.patience import stretch
from tests.raw_servers import answering, endless
from tests.web.fakes import IMAGE_ID, FakeGateway, listening, site_of

BASE = "http://gw.example:5000"
PROXY = GatewayProxy("proxy.example", 3128)


def settings_of(urls: Sequence[str]) -> Settings:
    """Return the settings of a client of these gateways."""
    return Settings(urls, ["mycluster"], "good:ann")


@pytest.mark.parametrize(
    ("proxy", "status", "location", "answer", "kind", "words"),
    [
        (None, 404, "", {"error": "No such image."}, UnknownName, "No such image."),
        (None, 400, "", {"error": "No such type."}, InvalidRequest, "No such type."),
        (
            None,
            503,
            "",
            {"error": "No store."},
            GatewayBusy,
            "gw.example:5000 cannot do this now: No st",
        ),
        (
            None,
            404,
            "",
            {"error": ["a"]},
            NoGateway,
            "gw.example:5000 answers with HTTP status 404",
        ),
        (None, 502, "", None, NoGateway, "502: a server in front of it cannot reach it. Try again"),
        (None, 413, "", None, NoGateway, "413: is it a gateway?"),
        (None, 301, "https://x\x1b", None, NoGateway, "and names https://x\\x1b: is that the"),
        (PROXY, 403, "", None, NoGateway, "The proxy proxy.example:3128 (http_proxy) answers"),
        (PROXY, 404, "", {"error": "No such image."}, UnknownName, "No such image."),
    ],
)
def test_answers_that_are_not_200(
    proxy: GatewayProxy | None,
    status: int,
    location: str,
    answer: Any,
    kind: type[Stop],
    words: str,
) -> None:
    """The gateway's message is shown; without one the error names the server that answers."""
    error = refusal(BASE, proxy, status, location, answer)
    assert type(error) is kind
    assert words in error.message


@both_clients
@pytest_twisted.ensureDeferred
async def test_another_protocol(with_client: Any) -> None:
    """The message says that the server does not speak HTTP."""
    async with answering(lambda send, _: send(b"SSH-2.0-OpenSSH_9.2\r\n")) as server:
        with pytest.raises(NoGateway, match="what it sent is not HTTP"):
            await with_client(settings_of([f"http://127.0.0.1:{server.port}"]), Remote.images)


@pytest.mark.parametrize("proxy", ["127.0.0.1", "nosuch.invalid"])
@both_clients
@pytest_twisted.ensureDeferred
async def test_a_proxy_that_cannot_be_reached(
    with_client: Any, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the proxy and its variable: the gateway is not at fault."""
    monkeypatch.setenv("http_proxy", f"http://{proxy}:{free_port()}")
    with pytest.raises(NoGateway, match=rf"gw.example:5000 .* proxy {proxy}:\d+ \(http_proxy\): "):
        await with_client(settings_of([BASE]), Remote.images)


@both_clients
@pytest_twisted.ensureDeferred
async def test_all_gateways_are_silent(with_client: Any) -> None:
    """The message has a line for each gateway, since each may have a fault of its own."""
    ports = [free_port() for _ in range(3)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    with pytest.raises(NoGateway) as caught:
        await with_client(settings_of(urls), Remote.images, urls)
    lines = str(caught.value).splitlines()
    assert [f":{port} cannot" in line for port, line in zip(ports, lines, strict=True)] == [
        True
    ] * 3


@both_clients
@pytest_twisted.ensureDeferred
async def test_the_first_gateway_hangs(with_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next gateway is asked after `HEAD_LIMIT` seconds, not after those of a whole answer."""
    monkeypatch.setattr(gateways, "HEAD_LIMIT", stretch(0.2))

    async def two_lookups(remote: Remote) -> list[str]:
        first = await remote.lookup("docker", "ubuntu:24.04")
        # On a busy machine the healthy gateway, which is asked first from now on, may need longer.
        monkeypatch.setattr(gateways, "HEAD_LIMIT", 60.0)
        return [first, await remote.lookup("docker", "ubuntu:24.04")]

    async with (
        answering(endless(b"HTTP/1.1 200 OK\r\n", b"X", 0.02)) as hanging,
        listening(site_of(FakeGateway(), reactor)) as port,
    ):
        urls = [f"http://127.0.0.1:{number}" for number in (hanging.port, port)]
        assert await with_client(settings_of(urls), two_lookups, urls) == [IMAGE_ID] * 2
    assert len(hanging.heads) == 1


@both_clients
@pytest_twisted.ensureDeferred
async def test_a_long_answer_is_not_given_up(
    with_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the head has arrived, the limit on the head no longer counts."""
    monkeypatch.setattr(gateways, "HEAD_LIMIT", 1.0)

    def answer(send: Callable[[bytes], None], _: bytes) -> None:
        send(b"HTTP/1.1 200 OK\r\n\r\n")
        time.sleep(1.2)
        send(b'{"list": []}')

    async with answering(answer) as slow:
        urls = [f"http://127.0.0.1:{port}" for port in (slow.port, free_port())]
        assert await with_client(settings_of(urls), Remote.images, urls) == []


def test_the_limit_of_the_head_does_not_count_for_the_body() -> None:
    """A long answer whose head has arrived is not given up."""
    clock, request = Clock(), Deferred[str]()
    waiting = AnswerTimeout(cast("Any", clock), limit=60, head_limit=10)
    result = Deferred.fromCoroutine(waiting.result_of(request))
    clock.advance(9)
    waiting.begin_body()
    clock.advance(50)
    assert not result.called
    clock.advance(1)
    assert waiting.limit == 60
    result.addErrback(lambda failure: failure.trap(TimeoutError))
    assert request.called
    assert result.called


@both_clients
@pytest_twisted.ensureDeferred
async def test_a_gateway_at_an_ipv6_address(with_client: Any) -> None:
    """A URL with the address in brackets, a port and a path reaches the gateway."""
    fake = FakeGateway()
    listener: Any = reactor.listenTCP(0, site_of(fake, reactor), interface="::1")
    try:
        settings = settings_of([f"http://[::1]:{listener.getHost().port}"])
        lists = await with_client(settings, Remote.images)
        assert [row["id"] for row in lists] == [IMAGE_ID]
    finally:
        await listener.stopListening()


@pytest.mark.parametrize(
    ("base", "uri"),
    [
        ("http://[::1]:5000", b"http://[::1]:5000/api/x%2Fy/?a=1"),
        ("http://[fe80::1%25eth0]", b"http://[fe80::1%25eth0]/api/x%2Fy/?a=1"),
        ("https://g\u00e4te/p\u00e4th", b"https://xn--gte-qla/p%C3%A4th/api/x%2Fy/?a=1"),
        ("http://" + 60 * "a" + ":5000", b"http://" + 60 * b"a" + b":5000/api/x%2Fy/?a=1"),
    ],
)
def test_the_uri_of_a_request(base: str, uri: bytes) -> None:
    """The URI is ASCII whatever the user has written, and escapes stay as they are."""
    assert uri_of(base, "/api/x%2Fy/?a=1") == uri


@pytest.mark.parametrize(
    ("text", "right"),
    [
        *(
            (name, True)
            for name in ("gw", "gw.example.", "10.0.0.1", "::1", "fe80::1%eth0", "g\u00e4te")
        ),
        *((name, False) for name in ("", "a..b", "-a", "a-", "a_b", "::g", "fe80::1%", "a" * 64)),
    ],
)
def test_names_of_hosts(text: str, right: bool) -> None:
    """Host names and addresses are accepted if a connection can be made to them."""
    assert is_host(text) is right


BYTES = os.fsdecode(b"\xff")


@pytest.mark.parametrize(
    "arguments",
    [["lookup", BYTES], ["--system", BYTES, "images"], ["--credential", BYTES, "images"],
     ["convert", BYTES, "o"]],
)  # fmt: skip
def test_arguments_that_are_not_text(arguments: Sequence[str]) -> None:
    """Bytes that are not UTF-8 are refused with a message."""
    env = {"SHIFTERGW_GATEWAY": "http://127.0.0.1:1", "SHIFTERGW_SYSTEM": "a"}
    result = shiftergw(*arguments, env=env)
    assert (result.returncode, "is not UTF-8" in result.stderr) == (2, True)
    assert "Traceback" not in result.stderr
