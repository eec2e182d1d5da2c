"""A connection to a MongoDB server, tested without a server."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from bson.datetime_ms import DatetimeMS
from pymongo.errors import AutoReconnect, DuplicateKeyError, NotPrimaryError, OperationFailure
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from txmongo.protocol import Msg

from shiftergw.mongo.connection import LONGEST_ANSWER, MongoConnection, raise_for_error


def open_connection() -> tuple[MongoConnection, StringTransport]:
    """Return a connection and its transport, which leads nowhere."""
    link, transport = MongoConnection(), StringTransport()
    link.makeConnection(transport)
    return link, transport


def answer(number: int, **body: Any) -> bytes:
    """Return the bytes of an answer to a command."""
    content: bytes = Msg.create({"ok": 1, **body}, response_to=number).encode(99)
    return content


def result(waiting: Deferred[Any]) -> Any:
    """Return the result of a Deferred, or raise its error."""
    results: list[Any] = []
    waiting.addBoth(results.append)
    assert results, "it has not fired"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def test_an_answer_fires_its_command() -> None:
    """A command names its database, and its answer fires its Deferred."""
    link, transport = open_connection()
    waiting = link.command("images", {"ping": 1})
    command = bson.decode(transport.value()[21:])
    assert command == {"ping": 1, "$db": "images"}
    assert link.command_count == 1
    link.dataReceived(answer(1, n=5))
    assert result(waiting) == {"ok": 1, "n": 5}
    assert link.command_count == 0


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 17, 100, 10_000])
def test_answers_may_come_in_pieces(size: int) -> None:
    """Each answer is complete, however its bytes are split."""
    link, _ = open_connection()
    waiting = [link.command("images", {"find": str(n)}) for n in range(9)]
    order = [2, 0, 1, 8, 7, 3, 5, 4, 6]
    content = b"".join(answer(n + 1, text="x" * 40 * n) for n in order)
    for start in range(0, len(content), size):
        link.dataReceived(content[start : start + size])
    assert [result(pending)["text"] for pending in waiting] == ["x" * 40 * n for n in range(9)]


def test_foreign_values_are_read_as_well_as_possible() -> None:
    """Invalid UTF-8 and dates that Python cannot represent are read."""
    link, _ = open_connection()
    waiting = link.command("images", {"find": "images"})
    content = answer(1, text="??", date=DatetimeMS(2**60))
    link.dataReceived(content.replace(b"??", b"\xff\xfe"))
    assert result(waiting) == {"ok": 1, "text": "\ufffd\ufffd", "date": DatetimeMS(2**60)}


def test_an_invalid_document_closes_the_connection() -> None:
    """The command that waits for the invalid document fails at once."""
    link, transport = open_connection()
    waiting = link.command("images", {"ping": 1})
    content = answer(1, text="??")
    link.dataReceived(content.replace(b"\2text\0", b"\x42text\0"))
    assert transport.disconnecting
    link.connectionLost(Failure(ConnectionDone()))
    with pytest.raises(AutoReconnect, match="cannot be read"):
        result(waiting)


def test_an_unexpected_answer_is_ignored() -> None:
    """The next answer still fires its own command."""
    link, _ = open_connection()
    cancelled_command, waiting = (link.command("images", {"ping": 1}) for _ in range(2))
    cancelled_command.cancel()
    with pytest.raises(CancelledError):
        result(cancelled_command)
    assert link.command_count == 1
    link.dataReceived(answer(1) + answer(77) + answer(2, n=2))
    assert result(waiting)["n"] == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 16,
        b"\xff" * 16,
        (15).to_bytes(4, "little") + b"\0" * 20,
        (LONGEST_ANSWER + 1).to_bytes(4, "little") + b"\0" * 20,
        (16).to_bytes(4, "little") + b"\0" * 12,
        (30).to_bytes(4, "little") + b"\0" * 8 + (2013).to_bytes(4, "little") + b"\1" * 14,
        b"HTTP/1.0 400 Bad Request\r\n\r\n",
    ],
)
def test_an_invalid_message_closes_the_connection(garbage: bytes) -> None:
    """No command waits forever."""
    link, transport = open_connection()
    waiting = link.command("images", {"ping": 1})
    link.dataReceived(garbage)
    assert not link.is_open
    assert transport.disconnecting
    link.connectionLost(Failure(ConnectionDone()))
    with pytest.raises(AutoReconnect, match="server"):
        result(waiting)


def test_commands_fail_when_the_connection_closes() -> None:
    """Commands in progress and later ones get the reason."""
    link, _ = open_connection()
    waiting = link.command("images", {"ping": 1})
    link.connectionLost(Failure(ConnectionDone("gone")))
    for pending in (waiting, link.command("images", {"ping": 1})):
        with pytest.raises(AutoReconnect, match="gone"):
            result(pending)
    assert link.disconnection.called


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"ok": 0, "code": 11000, "errmsg": "E11000"}, DuplicateKeyError),
        ({"ok": 1, "writeErrors": [{"code": 11000, "errmsg": "E11000"}]}, DuplicateKeyError),
        ({"ok": 0, "code": 10107, "errmsg": "not primary"}, NotPrimaryError),
        ({"ok": 0, "code": 13435, "errmsg": "not primary"}, NotPrimaryError),
        ({"ok": 1, "writeConcernError": {"code": 91, "errmsg": "stops"}}, NotPrimaryError),
        ({"ok": 1, "writeConcernError": {"code": 64, "errmsg": "too few"}}, OperationFailure),
        ({"ok": 0, "code": 13, "errmsg": "not authorized"}, OperationFailure),
        ({"ok": 1, "writeErrors": [{"code": 121, "errmsg": "validation"}]}, OperationFailure),
        ({}, OperationFailure),
    ],
)
def test_errors_in_answers_are_raised(content: dict[str, Any], expected: type[Exception]) -> None:
    """Each kind of error is recognized, wherever it is in the answer."""
    with pytest.raises(expected) as caught:
        raise_for_error(content)
    assert type(caught.value) is expected


def test_answers_without_errors_are_returned() -> None:
    """A successful answer passes unchanged."""
    for content in ({"ok": 1}, {"ok": 1.0, "n": 0, "writeErrors": []}):
        assert raise_for_error(content) is content
