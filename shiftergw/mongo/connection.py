"""One connection to a MongoDB server: commands go out, answers come back.

txmongo gives the wire protocol. Its `ConnectionPool` is not used: it goes on without a word when a
login is refused, knows neither SCRAM-SHA-256 nor the names in certificates, connects in its
constructor, and a server that hangs while it logs in is never given up.
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
"""One value of somebody else's that Python cannot hold must not hide all that comes with it."""

LONGEST_ANSWER = 48_000_000
"""Bytes of a message: the protocol's own limit."""

LARGEST_COMMAND = (16 << 20) + (16 << 10)
"""Bytes of a command: the largest document, and what stands around it."""

_AUTHORITY_REMEDY = "Name the file of its authority by tlsCAFile in MongoDBURI."

_HEADER = 16
_DUPLICATE = 11000
_GOES_AWAY = frozenset({11600, 11602, 10107, 13435, 13436, 189, 91})
"""What a server says that is no primary any more, or stops: ask again, perhaps another one."""


class MongoConnection(MongoSenderProtocol, MongoReceiverProtocol):
    """Answers come in the order of the commands: the server works on one of them at a time."""

    def __init__(self) -> None:
        """Wait to be connected."""
        MongoReceiverProtocol.__init__(self)
        self._waiting: dict[int, Deferred[dict[str, Any]]] = {}
        self._pieces: list[bytes] = []
        self._come = 0
        self._awaited = _HEADER
        self.open = False
        self.server = ""
        """Whom it leads to."""
        self.taken = False
        """Whether it is kept for one command that takes long: no other must wait behind it."""
        self.why = ""
        """Why it is lost, if it is."""
        self.lost: Deferred[None] = Deferred()
        """Fires when it is."""

    @property
    def busy(self) -> int:
        """Return how many commands wait for their answers."""
        return len(self._waiting)

    def command(self, database: str, body: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
        """Fire with the answer, be it an error; fail with `AutoReconnect` if none will come.

        A command whose caller is cancelled may be done all the same. What cannot be sent raises
        bson's errors, `OverflowError` or `ValueError`: a server would only close the connection.
        """
        message = Msg.create({**body, "$db": database}, codec_options=CODEC)
        if len(message.body) > LARGEST_COMMAND:
            raise DocumentTooLarge(f"{len(message.body)} bytes")
        if not self.open:
            return fail(AutoReconnect(self.why))
        number = self._send(message)
        answer: Deferred[dict[str, Any]] = Deferred(lambda _: self._forget(number))
        self._waiting[number] = answer
        return answer

    def _forget(self, number: int) -> None:
        self._waiting.pop(number, None)

    def connectionMade(self) -> None:
        self.open = True

    def dataReceived(self, data: bytes) -> None:
        """Pass whole messages on: the decoder copies all that it has with every piece."""
        self._pieces.append(data)
        self._come += len(data)
        if self._come < self._awaited:
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
        self._pieces, self._come, self._awaited = [content[end:]], len(content) - end, length
        super().dataReceived(content[:end])

    def handle(self, message: Any) -> None:
        """Take an answer to whom it is for."""
        if message.response_to in self._waiting:
            content = message.to_dict(CODEC)  # what cannot be read ends in `fail`: he waits so long
            self._waiting.pop(message.response_to).callback(content)

    def fail(self, reason: Any) -> None:
        """Give up a connection on which something came that is no answer."""
        self.abort(f"the server's answer cannot be read: {reason}")

    def abort(self, why: str) -> None:
        """Close at once: who waits hears so."""
        self.why = self.why or why
        self.open = False
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.why = self.why or _text_of(reason)
        self.open = False
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.errback(AutoReconnect(self.why))
        self.lost.callback(None)


def _text_of(reason: Failure) -> str:
    """Return why a connection ended; errors of TLS have no text of their own."""
    error = reason.value
    if isinstance(error, CertificateRefused):
        remedy = _AUTHORITY_REMEDY if error.fault == "authority" else error.remedy
        return f"{error}. {remedy} ({error.certificate})"
    return str(error) or repr(error)


def check(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer, or raise what it says: one of pymongo's errors."""
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
    if code in _GOES_AWAY:
        raise NotPrimaryError(text)
    raise OperationFailure(text, code)
