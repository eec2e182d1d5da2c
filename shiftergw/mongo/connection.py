"""One connection to a MongoDB server: it sends commands and receives answers.

txmongo provides the wire protocol. Its `ConnectionPool` is not used, because it continues silently
after a refused login, supports neither SCRAM-SHA-256 nor the verification of names in certificates,
connects in its constructor, and has no time limit for a server that hangs during the login.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo.errors import (
    AutoReconnect,
    DocumentTooLarge,
    DuplicateKeyError,
    NotPrimaryError,
    OperationFailure,
)
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from txmongo.protocol import MongoReceiverProtocol, MongoSenderProtocol, Msg

from shiftergw.plumbing.tls import CertificateRefused

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    unicode_decode_error_handler="replace", datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
"""A foreign value that Python cannot represent must not make the whole answer unreadable."""

LONGEST_ANSWER = 48_000_000
"""Bytes of a message at most; the limit of the protocol."""

LARGEST_COMMAND = (16 << 20) + (16 << 10)
"""Bytes of a command at most: the largest document, and 16 KiB around it."""

_AUTHORITY_REMEDY = "Name the file of its authority by tlsCAFile in MongoDBURI."

_HEADER = 16
_DUPLICATE = 11000
_NOT_PRIMARY = frozenset({11600, 11602, 10107, 13435, 13436, 189, 91})
"""Error codes of a server that stops, or is not the primary any more: send the command again."""


class MongoConnection(MongoSenderProtocol, MongoReceiverProtocol):
    """A protocol whose answers come in the order of the commands.

    The server works on one command of a connection at a time.
    """

    def __init__(self) -> None:
        """Wait to be connected."""
        MongoReceiverProtocol.__init__(self)
        self._answers: dict[int, Deferred[dict[str, Any]]] = {}
        self._pieces: list[bytes] = []
        self._size = 0
        """Bytes in all pieces."""
        self._next_size = _HEADER
        """Bytes at which the next message is complete, or its header if that is missing."""
        self.is_open = False
        self.server = ""
        """The name of the server."""
        self.is_reserved = False
        """Whether one long command has the connection for itself: others would wait behind it."""
        self.reason = ""
        """Why the connection was closed."""
        self.disconnection: Deferred[None] = Deferred()
        """Fires when the connection is closed."""

    @property
    def command_count(self) -> int:
        """Return the number of commands without an answer yet."""
        return len(self._answers)

    def command(self, database: str, body: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
        """Fire with the answer, which may be an error; fail with `AutoReconnect` without one.

        The server may carry out a command although its caller is cancelled. A command that no
        message can hold raises bson's errors, `OverflowError` or `ValueError`; the server would
        only close the connection.
        """
        message = Msg.create({**body, "$db": database}, codec_options=CODEC)
        if len(message.body) > LARGEST_COMMAND:
            raise DocumentTooLarge(f"{len(message.body)} bytes")
        if not self.is_open:
            return fail(AutoReconnect(self.reason))
        number = self._send(message)
        answer: Deferred[dict[str, Any]] = Deferred(lambda _: self._forget(number))
        self._answers[number] = answer
        return answer

    def _forget(self, number: int) -> None:
        self._answers.pop(number, None)

    def connectionMade(self) -> None:
        self.is_open = True

    def dataReceived(self, data: bytes) -> None:
        """Pass on whole messages only: txmongo copies its whole buffer with each piece of data."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size < self._next_size:
            return
        content = b"".join(self._pieces)
        end, length = 0, _HEADER
        while len(content) - end >= _HEADER:
            length = int.from_bytes(content[end : end + 4], "little")
            if not _HEADER <= length <= LONGEST_ANSWER:
                self.abort(f"the server sent a message of {length} bytes")
                return
            if len(content) - end < length:
                break
            end += length
            length = _HEADER
        self._pieces, self._size, self._next_size = [content[end:]], len(content) - end, length
        super().dataReceived(content[:end])

    def handle(self, message: Any) -> None:
        """Fire the Deferred of the command that a message answers."""
        if message.response_to in self._answers:
            # An unreadable message ends in `fail`; the Deferred must still be in the table then.
            content = message.to_dict(CODEC)
            self._answers.pop(message.response_to).callback(content)

    def fail(self, reason: Any) -> None:
        """Close a connection on which an invalid message came."""
        self.abort(f"the server's answer cannot be read: {reason}")

    def abort(self, reason: str) -> None:
        """Close the connection at once; commands without an answer fail with the reason."""
        self.reason = self.reason or reason
        self.is_open = False
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.reason = self.reason or _text_of(reason)
        self.is_open = False
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.errback(AutoReconnect(self.reason))
        self.disconnection.callback(None)


def _text_of(reason: Failure) -> str:
    """Return why a connection was closed; errors of TLS have no text of their own."""
    error = reason.value
    if isinstance(error, CertificateRefused):
        remedy = _AUTHORITY_REMEDY if error.fault == "authority" else error.remedy
        return f"{error}. {remedy} ({error.certificate})"
    return str(error) or repr(error)


def raise_for_error(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer, or raise the error in it as one of pymongo's errors."""
    if not answer.get("ok"):
        _raise(answer)
    for error in answer.get("writeErrors") or ():
        _raise(error)
    if "writeConcernError" in answer:
        _raise(answer["writeConcernError"])
    return answer


def _raise(error: Mapping[str, Any]) -> None:
    code, text = error.get("code"), str(error.get("errmsg"))
    if code == _DUPLICATE:
        raise DuplicateKeyError(text, code)
    if code in _NOT_PRIMARY:
        raise NotPrimaryError(text)
    raise OperationFailure(text, code)
