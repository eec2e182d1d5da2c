"""A service that is not a MongoDB server: each waiting call gets an error in time."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from shiftergw.errors import Unavailable
from shiftergw.mongo.pool import ConnectionPool
from tests.certificates import Authority
from tests.mongo.puppets import Serve, answering, serving
from tests.patience import patient, stretch
from tests.store.places import mongo_running
from tests.store.pulls import ID, all_of

SECONDS = stretch(1)


def says(content: bytes) -> Callable[[socket.socket], None]:
    """Return a protocol that answers any data with the same bytes."""

    def serve(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            connection.sendall(content)

    return serve


def never_answers(connection: socket.socket) -> None:
    """Read the data of a client, and never answer."""
    while connection.recv(1 << 16):
        pass


def greets(**members: Any) -> Serve:
    """Return a protocol that greets in MongoDB's protocol, with odd members."""

    def answer(_: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"ismaster": True, **members}

    return answering(answer)


STRANGERS: dict[str, Serve] = {
    "closes at once": lambda _: None,
    "closes after a question": lambda connection: connection.recv(1),
    "never answers": never_answers,
    "speaks HTTP": says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "zeros": says(b"\0" * 100),
    "an answer for nobody": says(b"\x15\0\0\0" + b"\0" * 8 + b"\xdd\7\0\0" + b"\0" * 5),
    "half an answer": says(b"\xff\0\0\0" + b"\0" * 8 + b"\xdd\7\0\0"),
    "greets with numbers": greets(setName=5, hosts=5),
    "greets with members that are none": greets(setName="rs0", hosts=[5, None]),
    "greets with a primary that is none": greets(ismaster=False, primary=5),
}


async def errors_of(uri: str, callers: int = 4) -> tuple[list[str], str]:
    """Return the errors of several calls, and the log."""

    async def ask(store: Any) -> str:
        with pytest.raises(Unavailable) as caught:
            await store.find_id(["alpha"], ID)
        return caught.value.detail

    begin = time.monotonic()
    with capturedLogs() as log:
        async with mongo_running(uri, "images", SECONDS) as store:
            details = await all_of(ask(store) for _ in range(callers))
            details += await all_of(ask(store) for _ in range(callers))
    assert time.monotonic() - begin < patient(6 * SECONDS)
    assert not any(event.get("isError") for event in log if "Unhandled" in str(event))
    return details, "\n".join(filter(None, map(formatEvent, log)))


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest_twisted.ensureDeferred
async def test_each_call_gets_the_address_and_a_reason(stranger: str) -> None:
    """First and later calls get the same error, with address and reason."""
    with serving(STRANGERS[stranger]) as host:
        details, log = await errors_of(f"mongodb://{host}/")
    assert all(detail.startswith("MongoDB: ") for detail in details)
    assert host in log


@pytest_twisted.ensureDeferred
async def test_an_invalid_conversation_is_no_login() -> None:
    """An invalid conversation is an error without the password."""
    for payload in (b"", b"r=1", 7, None):
        with serving(greets(payload=payload, conversationId=1)) as host:
            details, log = await errors_of(f"mongodb://me:secret@{host}/")
        assert "secret" not in f"{details} {log}"


@pytest_twisted.ensureDeferred
async def test_tls_on_one_side_only_is_explained(tmp_path: Path) -> None:
    """The gateway or the server may be the one that uses TLS."""
    certificate = Authority(tmp_path).file("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def tls_server(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as inner:
            never_answers(inner)

    with serving(greets()) as host:
        await errors_of(f"mongodb://{host}/?tls=true&tlsInsecure=true")
    with serving(tls_server) as host:
        await errors_of(f"mongodb://{host}/")


@pytest.mark.parametrize("name", ["x" * 64, "a..b", "ünreachable.invalid", "-", "\N{SNOWMAN}" * 70])
@pytest_twisted.ensureDeferred
async def test_an_invalid_host_name_is_like_an_unknown_one(name: str) -> None:
    """A host name that no resolver accepts is like an unknown one."""
    details, _ = await errors_of(f"mongodb://{name}:1/")
    assert all("MongoDB: " in detail for detail in details)


@pytest_twisted.ensureDeferred
async def test_the_next_host_is_tried() -> None:
    """A strange service among the hosts does not hide the real server."""

    def answer(command: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"ismaster": True, "cursor": {"id": 0, "firstBatch": []}, "n": 1}

    with serving(greets(setName="x", hosts=[5])) as odd, serving(answering(answer)) as host:
        async with mongo_running(f"mongodb://{odd},{host}/", "images", SECONDS) as store:
            assert list(await store.find_id(["alpha"], ID)) == []


@pytest_twisted.ensureDeferred
async def test_an_internal_error_ends_the_wait() -> None:
    """No call waits forever, or gets an unexpected error."""

    async def open_link() -> Any:
        raise ZeroDivisionError

    links = ConnectionPool(open_link, reactor, SECONDS)
    with capturedLogs() as log:
        waiting = [Deferred.fromCoroutine(links.take()) for _ in range(3)]
        for call in waiting:
            with pytest.raises(Unavailable):
                await call
    assert any(event.get("log_failure") for event in log)
    await links.close()
