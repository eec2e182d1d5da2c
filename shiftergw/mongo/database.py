"""A database on a MongoDB server: commands with time limits, and errors of `shiftergw.errors`.

A command whose connection breaks is sent once more, so the server may carry it out twice. A write
therefore says in its filter what must still be true, and its caller learns that it was sent twice:
the second time nothing may match the filter, because the first one has changed the document.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bson.errors import BSONError
from pymongo.errors import (
    AutoReconnect,
    CursorNotFound,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)
from twisted.internet.defer import Deferred

from shiftergw.errors import NotStorable, Unavailable, printable
from shiftergw.mongo.connection import MongoConnection, raise_for_error
from shiftergw.mongo.connector import NO_ANSWER, login_refused
from shiftergw.mongo.pool import ConnectionPool
from shiftergw.plumbing.timing import within

COMMAND_SECONDS = 5.0
"""Seconds that one command may take."""

BATCH = 500
"""Documents in one answer of the server: reading them blocks the reactor."""

Document = dict[str, Any]
Filter = Mapping[str, Any]

_NOT_ALLOWED = frozenset({13, 18})
"""Error codes of an action that the user may not do."""

_INVALID_DOCUMENT = frozenset({10334, 17419, 17420, 17280, 22, 52, 56, 57, 121})
"""Error codes of a document that is too large, is invalid, or violates a rule of the site."""

_UNSENDABLE = (BSONError, OverflowError, ValueError)
"""Errors for a document that no message can hold."""


@dataclass(frozen=True, slots=True)
class Query:
    """A search in a collection; `sort` is 1 or -1 for each member, and `limit` 0 means no limit."""

    collection: str
    filter: Filter
    sort: Mapping[str, int] = field(default_factory=dict)
    limit: int = 0
    skip: int = 0
    members: Sequence[str] = ()

    def command(self) -> Document:
        """Return the command for this search."""
        command: Document = {"find": self.collection, "filter": self.filter}
        if self.sort:
            command["sort"] = self.sort
        if self.limit:
            command["limit"] = self.limit
        if self.skip:
            command["skip"] = self.skip
        if self.members:
            command["projection"] = dict.fromkeys(self.members, 1)
        return command


class Database:
    """Send commands; raise `Unavailable` if no answer comes, or an unexpected error.

    An insert may raise pymongo's `DuplicateKeyError`.
    """

    def __init__(
        self,
        clock: Any,
        pool: ConnectionPool,
        name: str,
        write_concern: Mapping[str, Any],
        seconds: float = COMMAND_SECONDS,
    ) -> None:
        """Send commands for the database `name`; `write_concern` makes a write durable."""
        self.clock = clock
        self._pool = pool
        self._name = name
        self._seconds = seconds
        # The server gives up a write a little earlier than this process gives up its answer.
        durable = {**write_concern, "wtimeout": int(seconds * 800)}
        self._durable = {"writeConcern": durable}
        self._majority = {"writeConcern": {**durable, "j": False}}
        self._primary_only = {"writeConcern": {"w": 1}}

    async def run(self, body: Mapping[str, Any], seconds: float | None = None) -> Mapping[str, Any]:
        """Return the answer to a command; it may take `seconds` instead of the usual limit."""
        answer, _ = await self._send_with_retry(body, seconds or self._seconds)
        return answer

    async def _send_with_retry(
        self, body: Mapping[str, Any], seconds: float
    ) -> tuple[Mapping[str, Any], bool]:
        """Return the answer, and whether the command was sent a second time."""
        with _translated_errors():
            try:
                return await self._send(body, seconds), False
            except AutoReconnect:
                return await self._send(body, seconds), True

    async def _send(self, body: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        connection = await self._pool.take()

        def time_out() -> Unavailable:
            # An answer that still comes on this connection has no receiver.
            connection.abort("the server does not answer")
            detail = f"MongoDB: no answer to {next(iter(body))} within {seconds:g} s"
            return Unavailable(NO_ANSWER, detail=detail)

        pending = _start_command(connection, self._name, body)
        if seconds > self._seconds:
            connection.is_reserved = True

            def end_reservation(result: Any) -> Any:
                connection.is_reserved = False
                return result

            pending.addBoth(end_reservation)
        answer = await within(seconds, self.clock, pending, time_out)
        try:
            return raise_for_error(answer)
        except AutoReconnect as error:  # the server is not the primary any more
            self._pool.drop(str(error))
            raise

    async def find(self, query: Query) -> list[Document]:
        """Return all documents that match."""
        with _translated_errors():
            try:
                return await self._find(query)
            except (AutoReconnect, CursorNotFound):
                return await self._find(query)

    async def _find(self, query: Query) -> list[Document]:
        answer = await self._send({**query.command(), "batchSize": BATCH}, self._seconds)
        cursor = answer["cursor"]
        documents: list[Document] = cursor["firstBatch"]
        while cursor["id"]:
            next_batch = self._next_batch(query, cursor["id"])
            cursor = (await self._send(next_batch, self._seconds))["cursor"]
            documents += cursor["nextBatch"]
        return documents

    async def batches(self, query: Query) -> AsyncIterator[list[Document]]:
        """Yield the documents that match in batches, so that memory does not have to hold all."""
        with _translated_errors():
            answer = await self._send({**query.command(), "batchSize": BATCH}, self._seconds)
        cursor = answer["cursor"]
        yield cursor["firstBatch"]
        while cursor["id"]:
            next_batch = self._next_batch(query, cursor["id"])
            with _translated_errors():
                cursor = (await self._send(next_batch, self._seconds))["cursor"]
            yield cursor["nextBatch"]

    @staticmethod
    def _next_batch(query: Query, cursor: int) -> Document:
        return {"getMore": cursor, "collection": query.collection, "batchSize": BATCH}

    async def first(self, query: Query) -> Document | None:
        """Return the first document that matches."""
        answer = await self.run({**query.command(), "limit": 1, "singleBatch": True})
        documents: list[Document] = answer["cursor"]["firstBatch"]
        return documents[0] if documents else None

    async def count(self, collection: str, where: Filter) -> int:
        """Return the number of documents that match."""
        return int((await self.run({"count": collection, "query": where}))["n"])

    async def insert(
        self,
        collection: str,
        documents: Sequence[Document],
        *,
        durable: bool = True,
        majority: bool = False,
    ) -> None:
        """Insert documents; raise `DuplicateKeyError` if a key exists, and insert the rest."""
        body = {"insert": collection, "documents": list(documents), "ordered": False}
        await self._write(body, durable=durable, majority=majority)

    async def modify(
        self,
        collection: str,
        where: Filter,
        update: Mapping[str, Any],
        *,
        upsert: bool = False,
        durable: bool = True,
    ) -> tuple[Document | None, bool]:
        """Change one document that matches; return the new document, or None.

        The flag says that the command was sent twice, and the first one may have made the change.
        """
        body = {"findAndModify": collection, "query": where, "update": update, "new": True}
        answer, is_repeated = await self._write({**body, "upsert": upsert}, durable=durable)
        return answer.get("value"), is_repeated

    async def update(
        self,
        collection: str,
        where: Filter,
        update: Mapping[str, Any],
        *,
        multi: bool = False,
        upsert: bool = False,
        durable: bool = True,
    ) -> int:
        """Change the documents that match, or one of them; return how many matched."""
        change = {"q": where, "u": update, "multi": multi, "upsert": upsert}
        answer, _ = await self._write({"update": collection, "updates": [change]}, durable=durable)
        return int(answer["n"])

    async def replace(self, collection: str, documents: Sequence[Document]) -> None:
        """Write documents under their keys; replace those that exist."""
        updates = [
            {"q": {"_id": document["_id"]}, "u": document, "upsert": True} for document in documents
        ]
        body = {"update": collection, "updates": updates, "ordered": False}
        await self._write(body, durable=True)

    async def delete(
        self, collection: str, where: Filter, *, multi: bool = False, durable: bool = True
    ) -> tuple[int, bool]:
        """Delete the documents that match, or one of them; return how many were deleted.

        The flag is that of `modify`.
        """
        delete = {"q": where, "limit": 0 if multi else 1}
        answer, is_repeated = await self._write(
            {"delete": collection, "deletes": [delete]}, durable=durable
        )
        return int(answer["n"]), is_repeated

    async def _write(
        self, body: Mapping[str, Any], *, durable: bool, majority: bool = False
    ) -> tuple[Mapping[str, Any], bool]:
        """Send a write.

        `durable`: once it is answered, it outlives a power cut. `majority`: it outlives at least a
        change of the primary server. With neither, such a change may undo it.
        """
        concern = self._durable if durable else self._majority if majority else self._primary_only
        return await self._send_with_retry({**body, **concern}, self._seconds)


def _start_command(
    connection: MongoConnection, name: str, body: Mapping[str, Any]
) -> Deferred[dict[str, Any]]:
    """Send a command; raise `NotStorable`, and send nothing, if no message can hold it."""
    try:
        return connection.command(name, body)
    except _UNSENDABLE as error:
        raise _not_storable(error) from error


def _not_storable(error: Exception) -> NotStorable:
    text = f"MongoDB: {type(error).__name__}: {error}"
    return NotStorable("The gateway's database cannot hold this.", detail=printable(text))


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn pymongo's errors into `Unavailable` and `NotStorable`, except `DuplicateKeyError`."""
    try:
        yield
    except DuplicateKeyError:
        raise
    except OperationFailure as error:
        if error.code in _NOT_ALLOWED:
            raise login_refused(f"the user of MongoDBURI may not do this: {error}") from error
        if error.code in _INVALID_DOCUMENT:
            raise _not_storable(error) from error
        raise Unavailable(NO_ANSWER, detail=printable(f"MongoDB: {error}")) from error
    except PyMongoError as error:
        raise Unavailable(NO_ANSWER, detail=printable(f"MongoDB: {error}")) from error
