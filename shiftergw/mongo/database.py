"""A database on a MongoDB server: commands with limits, and errors in the words of `errors`.

Each command has so many seconds. One whose connection breaks is sent once more, so it may be done
twice: a caller who writes says in its filter what must still be true, and is told of the second
time, because then nothing may match any more of what was done the first time.
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
from shiftergw.mongo.connection import MongoConnection, check
from shiftergw.mongo.connector import NO_ANSWER, login_refused
from shiftergw.mongo.pool import ConnectionPool
from shiftergw.plumbing.timing import within

COMMAND_SECONDS = 5.0
"""How long one command may take."""

BATCH = 500
"""Documents that come together: reading them holds up everybody else so long."""

Document = dict[str, Any]
Filter = Mapping[str, Any]

_NOT_ALLOWED = frozenset({13, 18})
_NOT_TAKEN = frozenset({10334, 17419, 17420, 17280, 22, 52, 56, 57, 121})
"""What a server says of a document that is too large, or is none, or not as the site wants it."""

_UNSENDABLE = (BSONError, OverflowError, ValueError)
"""What is raised for a document that no message can hold."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for in a collection; `sort` is 1 or -1 for each member, `limit` 0 is none."""

    collection: str
    filter: Filter
    sort: Mapping[str, int] = field(default_factory=dict)
    limit: int = 0
    skip: int = 0
    members: Sequence[str] = ()

    def command(self) -> Document:
        """Return the command that asks for it."""
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
    """Sends commands; raises `Unavailable` when no answer comes, or an error that nobody expects.

    pymongo's `DuplicateKeyError` is expected wherever something is inserted.
    """

    def __init__(
        self,
        clock: Any,
        links: ConnectionPool,
        name: str,
        concern: Mapping[str, Any],
        seconds: float = COMMAND_SECONDS,
    ) -> None:
        """Send what is for the database `name`; `concern` is what makes a write safe."""
        self.clock = clock
        self._links = links
        self._name = name
        self._seconds = seconds
        # An answer that we would not wait for is of no use.
        durable = {**concern, "wtimeout": int(seconds * 800)}
        self._durable = {"writeConcern": durable}
        self._agreed = {"writeConcern": {**durable, "j": False}}
        self._quick = {"writeConcern": {"w": 1}}

    async def run(self, body: Mapping[str, Any], seconds: float | None = None) -> Mapping[str, Any]:
        """Return the answer to a command."""
        answer, _ = await self._twice(body, seconds or self._seconds)
        return answer

    async def _twice(
        self, body: Mapping[str, Any], seconds: float
    ) -> tuple[Mapping[str, Any], bool]:
        """Return the answer, and whether the command was sent a second time."""
        with _translated():
            try:
                return await self._once(body, seconds), False
            except AutoReconnect:
                return await self._once(body, seconds), True

    async def _once(self, body: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
        link = await self._links.take()

        def late() -> Unavailable:
            # What is still to come on this connection is for nobody.
            link.abort("the server does not answer")
            detail = f"MongoDB: no answer to {next(iter(body))} within {seconds:g} s"
            return Unavailable(NO_ANSWER, detail=detail)

        waiting = _sent(link, self._name, body)
        if seconds > self._seconds:
            link.taken = True

            def end(result: Any) -> Any:
                link.taken = False
                return result

            waiting.addBoth(end)
        answer = await within(seconds, self.clock, waiting, late)
        try:
            return check(answer)
        except AutoReconnect as error:  # it is not the primary any more
            self._links.leave(str(error))
            raise

    async def find(self, query: Query) -> list[Document]:
        """Return what matches."""
        with _translated():
            try:
                return await self._find(query)
            except (AutoReconnect, CursorNotFound):
                return await self._find(query)

    async def _find(self, query: Query) -> list[Document]:
        answer = await self._once({**query.command(), "batchSize": BATCH}, self._seconds)
        cursor = answer["cursor"]
        found: list[Document] = cursor["firstBatch"]
        while cursor["id"]:
            more = {"getMore": cursor["id"], "collection": query.collection, "batchSize": BATCH}
            cursor = (await self._once(more, self._seconds))["cursor"]
            found += cursor["nextBatch"]
        return found

    async def pieces(self, query: Query) -> AsyncIterator[list[Document]]:
        """Yield what matches piece by piece, so that it need not be in memory all at once."""
        with _translated():
            answer = await self._once({**query.command(), "batchSize": BATCH}, self._seconds)
        cursor = answer["cursor"]
        yield cursor["firstBatch"]
        while cursor["id"]:
            more = {"getMore": cursor["id"], "collection": query.collection, "batchSize": BATCH}
            with _translated():
                cursor = (await self._once(more, self._seconds))["cursor"]
            yield cursor["nextBatch"]

    async def first(self, query: Query) -> Document | None:
        """Return the first document that matches."""
        answer = await self.run({**query.command(), "limit": 1, "singleBatch": True})
        found: list[Document] = answer["cursor"]["firstBatch"]
        return found[0] if found else None

    async def count(self, collection: str, wanted: Filter) -> int:
        """Return how many documents match."""
        return int((await self.run({"count": collection, "query": wanted}))["n"])

    async def insert(
        self,
        collection: str,
        documents: Sequence[Document],
        *,
        durable: bool = True,
        agreed: bool = False,
    ) -> None:
        """Add documents; raise `DuplicateKeyError` if one's key is taken, and add the others."""
        body = {"insert": collection, "documents": list(documents), "ordered": False}
        await self._write(body, durable=durable, agreed=agreed)

    async def modify(
        self,
        collection: str,
        wanted: Filter,
        update: Mapping[str, Any],
        *,
        upsert: bool = False,
        durable: bool = True,
    ) -> tuple[Document | None, bool]:
        """Change one document that matches, and return it as it is then, or None.

        The flag says that the change was sent twice, and may have been made the first time.
        """
        body = {"findAndModify": collection, "query": wanted, "update": update, "new": True}
        answer, again = await self._write({**body, "upsert": upsert}, durable=durable)
        return answer.get("value"), again

    async def update(
        self,
        collection: str,
        wanted: Filter,
        update: Mapping[str, Any],
        *,
        many: bool = False,
        upsert: bool = False,
        durable: bool = True,
    ) -> int:
        """Change what matches and return how many documents did."""
        change = {"q": wanted, "u": update, "multi": many, "upsert": upsert}
        answer, _ = await self._write({"update": collection, "updates": [change]}, durable=durable)
        return int(answer["n"])

    async def replace(self, collection: str, documents: Sequence[Document]) -> None:
        """Put documents where those of their keys are, or are not."""
        updates = [{"q": {"_id": one["_id"]}, "u": one, "upsert": True} for one in documents]
        body = {"update": collection, "updates": updates, "ordered": False}
        await self._write(body, durable=True)

    async def delete(
        self, collection: str, wanted: Filter, *, many: bool = False, durable: bool = True
    ) -> tuple[int, bool]:
        """Remove what matches and return how many documents did; the flag as of `modify`."""
        delete = {"q": wanted, "limit": 0 if many else 1}
        answer, again = await self._write(
            {"delete": collection, "deletes": [delete]}, durable=durable
        )
        return int(answer["n"]), again

    async def _write(
        self, body: Mapping[str, Any], *, durable: bool, agreed: bool = False
    ) -> tuple[Mapping[str, Any], bool]:
        """Send a write.

        Durable: it outlives a power cut once it is answered. Agreed: at least a change of the
        primary server. Neither: one may undo it.
        """
        concern = self._durable if durable else self._agreed if agreed else self._quick
        return await self._twice({**body, **concern}, self._seconds)


def _sent(link: MongoConnection, name: str, body: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
    """Send a command; raise `NotStorable` if no message holds it: nothing is sent then."""
    try:
        return link.command(name, body)
    except _UNSENDABLE as error:
        raise _not_storable(error) from error


def _not_storable(error: Exception) -> NotStorable:
    text = f"MongoDB: {type(error).__name__}: {error}"
    return NotStorable("The gateway's database cannot hold this.", detail=printable(text))


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what a server says, or why it cannot be asked, into `Unavailable`."""
    try:
        yield
    except DuplicateKeyError:
        raise
    except OperationFailure as error:
        if error.code in _NOT_ALLOWED:
            raise login_refused(f"the user of MongoDBURI may not do this: {error}") from error
        if error.code in _NOT_TAKEN:
            raise _not_storable(error) from error
        raise Unavailable(NO_ANSWER, detail=printable(f"MongoDB: {error}")) from error
    except PyMongoError as error:
        raise Unavailable(NO_ANSWER, detail=printable(f"MongoDB: {error}")) from error
