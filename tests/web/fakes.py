"""A gateway without a store, and a site around it: in memory or on a loopback port."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from shiftergw.errors import NotAuthenticated, NotFound
from shiftergw.model.records import ImageRecord, WorkerMachine
from shiftergw.model.requests import Session
from shiftergw.model.uploads import ImageFile, UploadChoice
from shiftergw.plumbing.seal import Seal
from shiftergw.ports import QueueTrouble
from shiftergw.service.gateway import Gateway
from shiftergw.service.imports import ImportChoice
from shiftergw.service.inspection import InspectedImage
from shiftergw.service.page_sessions import PageSessions
from shiftergw.states import State
from shiftergw.web.api import make_site
from shiftergw.web.connections import ConnectionLimits
from shiftergw.web.journal import Audit, audit_nothing
from shiftergw.web.site import Site
from shiftergw.web.spool import InThread
from tests.web.description import problems_of

IMAGE_ID = "ab" * 32
READY = ImageRecord(
    key="1",
    system="mycluster",
    tags=("ubuntu:24.04",),
    status=State.READY,
    id=IMAGE_ID,
    user_acl=(),
    group_acl=(),
    env=("PATH=/bin",),
    last_pull=1_700_000_000.0,
    status_message="Transferring image",
)
"""A record as the store holds it once its pull has ended."""


class FakeAuthenticator:
    """Accepts the credential `good:NAME` only; bob has uid 1001, all other users 1000."""

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return a session or refuse."""
        word, _, user = credential.partition(":")
        if word != "good" or not user:
            raise NotAuthenticated("The credential is not valid.")
        return Session(system, user, 1001 if user == "bob" else 1000, "users", 100)

    async def renew(self, session: Session) -> Session:
        """Return the session as it is."""
        return session


@dataclass
class FakeWork:
    """The work of a system: `records` is what is read next, `ends` are READY images by key.

    `reads` counts the looks; each waits for `gate`, and raises `raises` if it is set.
    """

    records: Sequence[ImageRecord] = ()
    ends: dict[str, ImageRecord] = field(default_factory=dict)
    raises: Exception | None = None
    reads: int = 0
    gate: Deferred[None] | None = None

    async def pages(self, system: str) -> AsyncIterator[Sequence[ImageRecord]]:
        """Yield all records of the system, one on each page."""
        self.reads += 1
        if self.gate is not None:
            await self.gate
        if self.raises is not None:
            raise self.raises
        for record in self.records:
            yield [record]

    async def end_of(self, record: ImageRecord) -> ImageRecord | None:
        """Return the READY image of a pull that has ended."""
        return self.ends.get(record.key)


@dataclass
class FakeGateway:
    """Has the methods that the HTTP edge uses; each raises `raises` if it is set.

    `pulls` are the next answers of `pull`; the last of them is repeated. Every answer waits for
    `gate`. `hosts` are the registries by location. `calls` are the names and arguments of all
    calls.
    """

    systems: Sequence[str] = ("mycluster",)
    allows_anonymous: bool = False
    shows_labels: bool = False
    images: Sequence[ImageRecord] = (READY,)
    pulls: list[ImageRecord] = field(default_factory=lambda: [READY])
    image_of_content: ImageRecord | None = None
    waiting: Sequence[ImageRecord] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    uploads: Any = None
    downloads: Any = None
    raises: Exception | None = None
    gate: Deferred[None] | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    work: FakeWork = field(default_factory=FakeWork)
    clock: Clock = field(default_factory=Clock)
    queue_trouble: QueueTrouble | None = None
    page_sessions: PageSessions = field(init=False)

    def __post_init__(self) -> None:
        """Have sessions of browsers, by `clock`."""
        self.page_sessions = PageSessions(lambda: Seal(b"k" * 32), None, self.clock)

    def trouble(self, session: Session) -> QueueTrouble | None:
        """Return `queue_trouble`."""
        return self.queue_trouble

    def tag_of(self, session: Session, itype: str, text: str) -> str:
        """Return the name, or raise."""
        self.calls.append(("tag_of", session, itype, text))
        if self.raises is not None:
            raise self.raises
        return text

    @property
    def files(self) -> FakeGateway:
        """Return the object with `uploads` and `downloads`."""
        return self

    @property
    def inspections(self) -> FakeGateway:
        """Return the object that describes images."""
        return self

    @property
    def admin(self) -> FakeGateway:
        """Return the object with the requests of admins."""
        return self

    @property
    def owner(self) -> FakeGateway:
        """Return the object with the requests of owners."""
        return self

    async def remove(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Remove the image."""
        await self._turn("remove", session, itype, text)
        return READY

    async def pin(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Pin the image."""
        await self._turn("pin", session, itype, text)
        return replace(READY, pinned_by=session.uid)

    async def unpin(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Unpin the image."""
        await self._turn("unpin", session, itype, text)
        return READY

    async def _turn(self, *call: Any) -> None:
        self.calls.append(call)
        if self.gate is not None:
            await self.gate
        if self.raises is not None:
            raise self.raises

    async def ready(self) -> None:
        """Return, or raise."""
        await self._turn("ready")

    async def list(self, session: Session) -> AsyncIterator[Sequence[ImageRecord]]:
        """Yield all images, one on each page."""
        await self._turn("list", session)
        for image in self.images:
            yield [image]

    async def lookup(self, session: Session, itype: str, text: str) -> ImageRecord:
        """Return the image that has the tag."""
        await self._turn("lookup", session, itype, text)
        for image in self.images:
            if text in image.tags and image.itype == itype:
                return image
        raise NotFound(f"There is no image {text}.")

    async def inspect(self, session: Session, itype: str, text: str) -> InspectedImage:
        """Return the image that has the tag, which is on two systems."""
        return InspectedImage(await self.lookup(session, itype, text), ["mycluster", "other"])

    async def pull(
        self,
        session: Session,
        itype: str,
        text: str,
        user_acl: tuple[int, ...],
        group_acl: tuple[int, ...],
        request_id: str,
        upload: UploadChoice | None = None,
    ) -> ImageRecord:
        """Return the next of `pulls`."""
        choice = () if upload is None else (upload,)
        await self._turn("pull", session, itype, text, user_acl, group_acl, request_id, *choice)
        image = self.pulls.pop(0) if len(self.pulls) > 1 else self.pulls[0]
        return replace(image, pulltag=text)

    async def check_new_image(self, session: Session, text: str) -> None:
        """Return, or raise."""
        await self._turn("check_new_image", session, text)

    async def find_image_of_content(
        self,
        session: Session,
        text: str,
        user_acl: tuple[int, ...],
        group_acl: tuple[int, ...],
        file: ImageFile,
    ) -> ImageRecord | None:
        """Return `image_of_content`."""
        await self._turn("find_image_of_content", session, text, user_acl, group_acl, file)
        return self.image_of_content

    async def import_file(
        self,
        session: Session,
        itype: str,
        text: str,
        user_acl: tuple[int, ...],
        group_acl: tuple[int, ...],
        request_id: str,
        choice: ImportChoice,
    ) -> ImageRecord:
        """Return the first of `pulls`."""
        await self._turn(
            "import_file", session, itype, text, user_acl, group_acl, request_id, choice
        )
        return replace(self.pulls[0], pulltag=text)

    def last_answer(self, session: Session, itype: str, text: str, request_id: str) -> ImageRecord:
        """Return the first of `pulls`."""
        self.calls.append(("last_answer", session, itype, text, request_id))
        return replace(self.pulls[0], pulltag=text)

    def registries(self, session: Session) -> Mapping[str, str]:
        """Return `hosts`."""
        self.calls.append(("registries", session))
        return self.hosts

    async def queue(self, session: Session) -> AsyncIterator[Sequence[ImageRecord]]:
        """Yield the waiting records."""
        await self._turn("queue", session)
        yield self.waiting

    async def expire(self, session: Session, itype: str, text: str) -> None:
        """Expire a tag."""
        await self._turn("expire", session, itype, text)

    async def autoexpire(self, session: Session) -> Sequence[str]:
        """Expire all images whose time has come."""
        await self._turn("autoexpire", session)
        return [IMAGE_ID]

    async def take_down(self, session: Session, prefix: str) -> tuple[str, Sequence[str]]:
        """Block an image."""
        await self._turn("take_down", session, prefix)
        return IMAGE_ID, ["docker:ubuntu:24.04"]

    async def allow(self, session: Session, prefix: str) -> str:
        """Remove a block."""
        await self._turn("allow", session, prefix)
        return IMAGE_ID

    async def metrics(self, session: Session, limit: int) -> Sequence[Mapping[str, Any]]:
        """Return one row."""
        await self._turn("metrics", session, limit)
        return [{"user": "ann", "uid": 1000, "time": 1.5}]

    async def workers(self, session: Session) -> Sequence[tuple[WorkerMachine, Sequence[str]]]:
        """Return one machine with one job."""
        await self._turn("workers", session)
        machine = WorkerMachine("node1", "1.0", ("mycluster",), 2, ("f" * 24,), False, 1.5)
        return [(machine, ["app:1"])]


async def in_no_thread(function: Callable[[bytes], int], data: bytes) -> int:
    """Call a function in this thread."""
    return function(data)


def site_of(
    gateway: FakeGateway,
    clock: Any = None,
    in_thread: InThread = in_no_thread,
    limits: ConnectionLimits | None = None,
    audit: Audit = audit_nothing,
) -> Site:
    """Return the real site around a fake gateway."""
    authenticators = dict.fromkeys(gateway.systems, FakeAuthenticator())
    return make_site(
        cast("Gateway", gateway),
        authenticators,
        clock or Clock(),
        in_thread,
        limits=limits,
        audit=audit,
    )


@dataclass
class Reply:
    """A parsed HTTP answer; names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body's JSON."""
        return json.loads(self.body)

    @classmethod
    def parse(cls, data: bytes, method: str = "GET") -> tuple[Reply, bytes]:
        """Read one answer; return it and the bytes after it."""
        head, separator, rest = data.partition(b"\r\n\r\n")
        assert separator, data
        status_line, *lines = head.decode("ascii").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), lines
        length = 0 if method == "HEAD" else int(headers["content-length"])
        assert len(rest) >= length, data
        return cls(int(status_line.split()[1]), headers, rest[:length]), rest[length:]


class Wire:
    """One connection to a site, in memory.

    The answers of `ask` must be those that the description of the interface promises.
    """

    def __init__(self, site: Site, peer: str = "192.168.1.1") -> None:
        """Connect from the address `peer`."""
        self.transport = StringTransport(peerAddress=IPv4Address("TCP", peer, 54321))
        self._clock = cast("Clock", site.reactor)
        self.channel = site.buildProtocol(cast("IAddress", self.transport.getPeer()))
        assert self.channel is not None
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> bytes:
        """Send bytes and return everything that the site has sent so far."""
        assert self.channel is not None
        self.channel.dataReceived(data)
        # Each pipelined request gets a turn of the reactor of its own.
        now = self._clock.seconds()
        while any(call.getTime() <= now for call in self._clock.getDelayedCalls()):
            self._clock.advance(0)
        answer: bytes = self.transport.value()
        return answer

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Sequence[str] = ("authentication:good:ann",),
    ) -> Reply:
        """Send one request and return its answer, which must be complete at once."""
        host = [] if any(header.startswith("Host:") for header in headers) else ["Host: gateway"]
        lines = [f"{method} {path} HTTP/1.1", *host, *headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.transport.clear()
        data = self.send("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        reply, rest = Reply.parse(data, method)
        assert rest == b""
        check_reply(method, path, reply)
        return reply


def check_reply(method: str, path: str, reply: Reply) -> None:
    """Fail if an answer is not that which the description of the interface promises.

    Only routes of the API are compared: documents for browsers and for operators are apart.
    """
    if method == "HEAD" or not reply.body or not path.startswith("/api/"):
        return
    media_type = reply.headers["content-type"]
    document = reply.json if media_type == "application/json" else None
    assert problems_of(method, path, reply.status, media_type, document) == []


@asynccontextmanager
async def listening(site: Site) -> AsyncIterator[int]:
    """Serve on a loopback port until the context ends and all connections are closed."""
    from tests.installed_reactor import reactor  # noqa: PLC0415 - importing it installs it

    before = set(reactor.getReaders())
    port = reactor.listenTCP(0, site, interface="127.0.0.1")
    try:
        yield port.getHost().port
    finally:
        await port.stopListening()
        while set(reactor.getReaders()) - before:  # connections that the client has closed
            await deferLater(reactor, 0.002, int)
        site.stopFactory()  # again, to log the requests whose clients have just hung up


def hang_up(wire: Wire) -> None:
    """Close the connection, as a client does that no longer waits."""
    assert wire.channel is not None
    wire.channel.connectionLost(Failure(ConnectionDone()))
