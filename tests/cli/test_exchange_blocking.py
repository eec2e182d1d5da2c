"""The HTTP client without a reactor: the parts that the standard library does not have."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from shiftergw.cli import connecting
from shiftergw.cli.connecting import connect
from shiftergw.cli.exits import NoGateway
from shiftergw.cli.settings import Settings
from tests.certificates import Authority
from tests.cli.clients import with_standard_library
from tests.cli.command import shiftergw
from tests.impostors import IMPOSTORS, host_name, listening
from tests.parts import free_port
from tests.raw_servers import Answer, RawServer, answering
from tests.web.fakes import IMAGE_ID

BODY = json.dumps({"id": IMAGE_ID}).encode()
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


def sending(*pieces: bytes) -> Answer:
    """Return an answer of these bytes."""

    def answer(send: Callable[[bytes], None], _: bytes) -> None:
        for piece in pieces:
            send(piece)

    return answer


async def lookup(server: RawServer, credential: str = "good:ann") -> str:
    """Look an image up."""
    settings = Settings([f"http://127.0.0.1:{server.port}"], ["mycluster"], credential)
    return await with_standard_library(settings, lambda remote: remote.lookup("docker", "a/b:1"))


@pytest.mark.parametrize(
    "pieces",
    [
        [PLAIN],
        [b"HTTP/1.0 200 OK\r\n\r\n", BODY],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY), BODY,
         b"\r\n0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", gzip.compress(BODY)],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", PLAIN],
        [b"HTTP/1.1 200 OK\r\n", b"X-Folded: a\r\n b\r\n" * 200, PLAIN.partition(b"\r\n")[2]],
    ],
    ids=["length", "close", "chunked", "gzip", "1xx", "200 fields"],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_forms_of_an_answer(pieces: list[bytes]) -> None:
    """Every form of an answer that HTTP/1.1 allows is understood."""
    async with answering(sending(*pieces)) as server:
        assert await lookup(server) == IMAGE_ID


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([PLAIN[:-1]], "the connection broke"),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n", BODY],
            "connection broke",
        ),
        ([b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", BODY], "the connection broke"),
        ([], "the connection broke"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "what it sent is not HTTP"),
        ([b"HTTP/1.1 OK\r\n\r\n"], "what it sent is not HTTP"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_broken_answers(pieces: list[bytes], reason: str) -> None:
    """A part of an answer does not count as an answer, and the message names the fault."""
    async with answering(sending(*pieces)) as server:
        with pytest.raises(NoGateway, match=reason):
            await lookup(server)


@pytest_twisted.ensureDeferred
async def test_the_request() -> None:
    """A line break in the credential cannot begin another header."""
    async with answering(sending(PLAIN)) as server:
        await lookup(server, "good:ann\r\nX-Injected: 1")
    (head,) = server.heads
    line, *fields = head.decode().rstrip().split("\r\n")
    assert line == "GET /api/lookup/mycluster/docker/a%2Fb%3A1/ HTTP/1.1"
    assert sorted(fields) == [
        "Accept-Encoding: gzip",
        "Connection: close",
        "Content-Type: application/json",
        f"Host: 127.0.0.1:{server.port}",
        "authentication: good:ann X-Injected: 1",
    ]


class _Addresses:
    """A resolver that returns these addresses, whatever the host."""

    def __init__(self, *addresses: tuple[str, int]) -> None:
        self._addresses = addresses

    def __call__(self, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in self._addresses]


def full_server() -> tuple[socket.socket, list[socket.socket]]:
    """Return a listening socket with a full queue, and the connections that fill the queue."""
    server = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(server.getsockname())
        fillers.append(filler)
    return server, fillers


def test_the_next_address_is_tried_beside_a_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that does not answer, or refuses, costs a moment and not the whole limit."""
    silent, fillers = full_server()
    with socket.create_server(("127.0.0.1", 0)) as good:
        refusing = ("127.0.0.1", free_port())
        addresses = _Addresses(silent.getsockname(), refusing, good.getsockname())
        monkeypatch.setattr(socket, "getaddrinfo", addresses)
        with connect("gw.example", 1, limit=60) as connection:
            assert connection.getpeername() == good.getsockname()
            assert connection.gettimeout() is None
    for each_socket in (silent, *fillers):
        each_socket.close()


def test_no_address_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is an error at the limit; a refusal by every address is a refusal."""
    monkeypatch.setattr(connecting, "ATTEMPT_DELAY", 0.01)
    silent, fillers = full_server()
    monkeypatch.setattr(socket, "getaddrinfo", _Addresses(silent.getsockname()))
    with pytest.raises(TimeoutError, match="did not answer within"):
        connect("gw.example", 1, limit=0.05)
    refusing = _Addresses(*[("127.0.0.1", free_port())] * 2)
    monkeypatch.setattr(socket, "getaddrinfo", refusing)
    with pytest.raises(ConnectionRefusedError):
        connect("gw.example", 1, limit=60)
    for each_socket in (silent, *fillers):
        each_socket.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority that the command trusts."""
    return Authority(tmp_path_factory.mktemp("authority"))


def images_of(port: int, authority: Authority) -> Any:
    """Run `images` against a gateway with TLS."""
    env = {"SHIFTERGW_GATEWAY": f"https://localhost:{port}", "SHIFTERGW_SYSTEM": "mycluster",
           "SHIFTERGW_CREDENTIAL": "good:ann", "SSL_CERT_FILE": str(authority.pem)}  # fmt: skip
    return deferToThread(shiftergw, "images", env=env)


@pytest.mark.parametrize("kind", ["another host", "expired", "self-signed"])
@pytest_twisted.ensureDeferred
async def test_a_certificate_that_is_refused(
    kind: str, authority: Authority, tmp_path: Path
) -> None:
    """The message names the fault of the certificate, and no byte has been sent."""
    impostor = IMPOSTORS[kind]
    async with listening(impostor.make(authority, tmp_path, "localhost")) as server:
        done = await images_of(server.port, authority)
    assert done.returncode == 3
    assert impostor.words in done.stderr
    assert bytes(server.plaintext) == b""


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_is_accepted(authority: Authority) -> None:
    """The request is sent once, without Twisted's help."""
    async with listening(authority.server_file(host_name("localhost"))) as server:
        done = await images_of(server.port, authority)
    assert done.returncode == 3
    assert bytes(server.plaintext).startswith(b"GET /api/list/mycluster/ HTTP/1.1\r\n")
    assert server.connections == 1
