"""Random requests to the real site, with the real rules and a real store.

Here most requests are valid; `test_site` sends random bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from shiftergw.auth.mock import MockAuthenticator
from shiftergw.model.records import Expired, Failed, Ready
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import ANONYMOUS, PullRequest
from shiftergw.plumbing.seal import Seal
from shiftergw.plumbing.timing import pause
from shiftergw.service.gateway import Gateway
from shiftergw.states import State
from shiftergw.store.sqlite.store import SqliteStore
from shiftergw.web.api import make_site
from shiftergw.web.routes import ROUTES, Names
from tests.configurations import load_config
from tests.matrices import examples
from tests.web.fakes import Reply, Wire, hang_up, in_no_thread
from tests.work.fakes import FakeQueue

START = 1_000_000.0
ALICE, BOB, CAROL, ROOT, PROJECT = 2001, 2002, 2003, 0, 2300
PASSWORD = "hunter2"
ADMIN = "good:root:root::0:0"
CREDENTIALS = {
    f"good:alice:users:{PASSWORD}:2001:2100": {ALICE},
    "good:bob:users::2002:2100": {BOB},
    "good:carol:project::2003:2300": {CAROL, PROJECT},
    ADMIN: {ROOT},
    "": {ANONYMOUS},
    "(null)": set[int](),
    "bad:alice:users": set[int](),
}
"""Of each credential the ids for which an image may be readable."""

PUBLIC, PRIVATE, GROUP_ONLY, EXPIRING = (letter * 64 for letter in "abcd")
ENDS = st.sampled_from(["public", "private", "denied", "broken"])


def _outcome(end: str, image_id: str, uid: int = ALICE, group: int | None = None) -> Ready | Failed:
    """Return the end of a pull; the environment of a private image names its user or group."""
    if end in {"denied", "broken"}:
        return Failed("PULLING", end, "try again", retryable=True, own=end == "denied")
    acl = {"user_acl": () if group else (uid,), "group_acl": (group,) if group else ()}
    if end == "public":
        acl = {"user_acl": (), "group_acl": ()}
    mark = "MARK=for all" if end == "public" else f"MARK=for {group or uid}!"
    return Ready(image_id, {"private": end == "private", "env": (mark,), **acl})


class Groups:
    """Users who are members of the group in their credential."""

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:
        """See `UserDirectory`."""
        return frozenset({gid})


class Place:
    """The site on a store, and a worker that finishes waiting work."""

    def __init__(self, store: SqliteStore, *, anonymous: bool) -> None:
        """Serve two systems with one image directory; `root` is the admin of both."""
        self.store, self.clock = store, Clock()
        self.clock.advance(START)
        config = load_config(
            {
                "AllowAnonymous": anonymous,
                "Metrics": True,
                "QueueLimit": 4,
                "UserLimits": {"waiting": 3, "running": 1},
                "Platforms/sister": {"accesstype": "local", "local": {"imageDir": "/images"}},
            }
        ).config
        seal = Seal(b"k" * 32)
        gateway = Gateway(config, store, lambda: seal, lambda: None, self.clock, FakeQueue(0))
        users = {name: MockAuthenticator(name, Groups(), ("root",)) for name in config.systems}
        self.site = make_site(gateway, users, self.clock, in_no_thread)

    async def ask(self, method: str, data: bytes) -> Reply:
        """Send one request and return its answer, the only one that may arrive."""
        wire = Wire(self.site)
        wire.send(data)
        for _ in range(5000):
            data = wire.transport.value()
            if data.startswith(b"HTTP/1.1 100 "):
                data = data.partition(b"\r\n\r\n")[2]
            if b"\r\n\r\n" in data and (not _is_stream(data) or b"event: current" in data):
                break
            await pause(0.001, reactor)
        if _is_stream(data):
            hang_up(wire)
            head = {"content-type": "application/json"}
            return Reply(200, head, json.dumps(data.decode("ascii")).encode())
        has_body = not data.endswith(b"\r\n\r\n")  # a refusal of HEAD may have one
        reply, rest = Reply.parse(data, "GET" if has_body else method)
        assert rest == b""
        return reply

    async def end_work(self, end: str) -> None:
        """Finish the next waiting work as a worker would."""
        now = self.clock.seconds()
        for waiting in await self.store.waiting(now, 1):
            record = await self.store.begin(waiting.key, "here:1", now, 60)
            assert record is not None
            uid = record.requested_by or ROOT
            outcome = _outcome("public" if uid == ANONYMOUS else end, f"{uid + 1:064x}", uid)
            removal = record.status is State.EXPIRING
            await self.store.finish(
                record.key, record.attempt, Expired() if removal else outcome, now
            )


def _is_stream(data: bytes) -> bool:
    """Return whether an answer is one of events, apart from that to HEAD."""
    return b"Transfer-Encoding: chunked" in data and not data.endswith(b"\r\n\r\n\r\n")


async def _fill(store: SqliteStore) -> None:
    """Store records of every kind."""

    async def claim(name: str, uid: int, itype: str = "docker") -> str:
        wish = PullRequest("mycluster", itype, ImageReference.parse(name), uid, (5,), (6,))
        return (await store.claim(wish, START))[0].key

    await store.startService()
    for name, uid, itype, outcome in [
        ("app:1", ALICE, "docker", _outcome("public", PUBLIC)),
        ("app:1", BOB, "custom", _outcome("public", PUBLIC)),
        ("mine:1", ALICE, "docker", _outcome("private", PRIVATE)),
        ("mine:2", ALICE, "docker", _outcome("private", PRIVATE)),
        ("ours:1", ALICE, "docker", _outcome("private", GROUP_ONLY, group=PROJECT)),
        ("denied:1", ALICE, "docker", _outcome("denied", "")),
        ("broken:1", BOB, "docker", _outcome("broken", "")),
        ("going:1", BOB, "docker", _outcome("public", EXPIRING)),
    ]:
        key = await claim(name, uid, itype)
        record = await store.begin(key, "here:1", START, 60)
        assert record is not None
        await store.finish(key, record.attempt, outcome, START)
    (expiring,) = await store.find_id(["mycluster"], EXPIRING)
    await store.expire(expiring.key)
    await claim("busy:1", ALICE)
    await store.stopService()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a store with records of every kind."""
    path = tmp_path_factory.mktemp("template") / "store.sqlite"
    pytest_twisted.blockon(Deferred.fromCoroutine(_fill(SqliteStore(reactor, path))))
    return path


@asynccontextmanager
async def _serving(template: Path, *, anonymous: bool) -> AsyncIterator[Place]:
    """Serve a copy of the template."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "store.sqlite")
        shutil.copy(template, path)
        store = SqliteStore(reactor, path)
        await store.startService()
        try:
            yield Place(store, anonymous=anonymous)
        finally:
            await store.stopService()


@asynccontextmanager
async def _observed_log() -> AsyncIterator[list[str]]:
    """Yield the logged lines; fail if they contain a failure or a password."""
    lines: list[str] = []
    failures: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))
        if "log_failure" in event or event.get("isError"):
            failures.append(event)

    globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]  # a function does
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)  # type: ignore[arg-type]
    assert failures == []
    assert PASSWORD not in "\n".join(lines)


@dataclass(frozen=True)
class SentRequest:
    """A request that a test sends."""

    method: str
    target: bytes
    credential: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    def __bytes__(self) -> bytes:
        """Return the bytes to send."""
        lines = [
            b"%s %s HTTP/1.1" % (self.method.encode(), self.target),
            b"authentication:" + self.credential.encode(),
            *(name + b":" + value for name, value in self.headers),
            b"Content-Length: %d" % len(self.body),
        ]
        return b"\r\n".join([*lines, b"", self.body])


def _paths(page: str, system: str, itype: str, image: str, image_id: str) -> list[str]:
    """Return the paths of a route, the one that fits first."""
    paths = {
        Names.SYSTEM: f"/api/{page}/{system}",
        Names.IMAGE: f"/api/{page}/{system}/{itype}/{image}",
        Names.ID: f"/api/{page}/{system}/{image_id}",
    }
    return [paths.pop(ROUTES[page].names), *paths.values()]


def choose_weighted(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Return a strategy that chooses among others by weight; `one_of` drops repetitions."""
    places = [strategy for times, strategy in choices for _ in range(times)]
    return st.sampled_from(range(len(places))).flatmap(places.__getitem__)


NOISE = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
NAMES = [
    *["app:1", "mine:1", "ours:1"] * 3,
    *("mine:2", "denied:1", "broken:1", "going:1", "busy:1", "new:1"),
    *("new", "registry.example.com/new:2", f"app@sha256:{PRIVATE}", "A:b", "a:5000/x"),
]
IDS = [PUBLIC, PRIVATE, GROUP_ONLY, EXPIRING, "0" * 64, f"{ALICE + 1:064x}", "A" * 64, "a"]
FIT = st.builds(
    lambda *parts: _paths(*parts)[0],
    st.sampled_from(sorted(ROUTES)),
    st.sampled_from([*["mycluster"] * 4, "sister"]),
    st.sampled_from([*["docker"] * 4, "custom"]),
    choose_weighted((4, st.sampled_from(NAMES)), (1, NOISE)).map(lambda name: quote(name, safe="")),
    st.sampled_from(IDS),
)
ODD = st.one_of(
    st.builds(
        lambda *parts: "/".join(["/api", *parts]),
        st.sampled_from(sorted(ROUTES)) | NOISE.map(quote),
        st.sampled_from(["mycluster", "%6dycluster", "other", ""]) | NOISE.map(quote),
        st.sampled_from(["docker", "local", "id", "", "%00"]) | NOISE.map(quote),
        st.sampled_from([*NAMES, *IDS, "", "%2F", "%ff", "%", ".."]) | NOISE.map(quote),
    ),
    st.sampled_from(["/", "/livez", "/readyz", "*", "http://x/api/list/mycluster", "//api"]),
)
ENDINGS = [
    b"/",
    b"/",
    b"/",
    b"",
    b"//",
    b"/?limit=3",
    b"/?limit=x",
    b"/?%ff&limit=1&limit=2",
    b"#x",
]
TARGETS = choose_weighted(
    (8, st.builds(lambda path, end: path.encode() + end, FIT, st.sampled_from(ENDINGS))),
    (2, st.builds(lambda path, end: path.encode() + end, ODD, st.sampled_from(ENDINGS))),
    (1, st.binary(max_size=20).map(lambda noise: b"/" + bytes(b for b in noise if b > ord(" ")))),
)
HEADERS = st.tuples(
    st.sampled_from(b"Authentication Expect Content-Type Cookie Connection Host X Range".split()),
    st.sampled_from([b"100-continue", b"close", b"text/html; charset=x", b"bytes=0-", b"good:a:b"])
    | st.binary(max_size=12).map(lambda noise: bytes(b for b in noise if b not in b"\r\n\0")),
)
ACL: st.SearchStrategy[object] = st.sampled_from(
    ["2001,2003", "", "x", [2001], [], [True], None, 2002, "9" * 30, [[]]]
)
BODIES = st.one_of(
    st.just(b""),
    st.dictionaries(st.sampled_from(["allowed_uids", "allowed_gids", "x"]), ACL).map(
        lambda members: json.dumps(members).encode()
    ),
    st.binary(max_size=20),
)


def _method(target: bytes) -> str:
    """Return the method of the route that a target names."""
    page = target.split(b"/")[2:3]
    route = ROUTES.get(page[0].decode("latin-1")) if page else None
    return route.method if route else "GET"


REQUESTS = st.builds(
    lambda target, method, *rest: SentRequest(method or _method(target), target, *rest),
    TARGETS,
    st.sampled_from([*[""] * 30, "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "get", "X-Y"]),
    st.sampled_from([*CREDENTIALS, *list(CREDENTIALS)[:4] * 3]),
    choose_weighted((4, st.just(())), (1, st.lists(HEADERS, max_size=3).map(tuple))),
    BODIES,
)


def _check(request: SentRequest, reply: Reply) -> None:
    """Check the properties of every answer."""
    assert reply.status < 500, (request, reply)
    if reply.headers["content-type"] != "application/json":
        assert reply.body in {b"{lookup,pull,expire,list}", b"alive", b"ready", b""}
        return
    assert b"\n" not in reply.body
    assert b"Traceback" not in reply.body
    assert PASSWORD.encode() not in reply.body
    if reply.status != 200 and reply.body:
        assert reply.json["status"] == reply.status
        assert reply.json.keys() == {"status", "error", "message", "code"}
    for uid in (ALICE, BOB, CAROL, ROOT, PROJECT):
        is_visible = f"MARK=for {uid}!".encode() in reply.body
        assert not is_visible or uid in CREDENTIALS[request.credential], (request, reply)


STEPS = choose_weighted((6, REQUESTS), (1, ENDS), (1, st.sampled_from([20.0, 400.0])))


@settings(max_examples=examples(100))
@given(steps=st.lists(STEPS, min_size=5, max_size=15), anonymous=st.booleans())
@pytest_twisted.ensureDeferred
async def test_any_requests(
    template: Path, steps: list[SentRequest | str | float], anonymous: bool
) -> None:
    """No header, path or body causes a 5xx, an answer that is not in JSON, or a traceback.

    No sequence of requests and ends of work shows a user an image that they may not read.
    """
    async with _observed_log(), _serving(template, anonymous=anonymous) as place:
        for step in steps:
            if isinstance(step, SentRequest):
                _check(step, await place.ask(step.method, bytes(step)))
            elif isinstance(step, str):
                await place.end_work(step)
            else:
                place.clock.advance(step)


@pytest_twisted.ensureDeferred
async def test_the_requests_reach_the_rules(template: Path) -> None:
    """The requests of the test above reach the gateway on every route."""
    statuses = {}
    async with _observed_log() as lines, _serving(template, anonymous=False) as place:
        for page, route in ROUTES.items():
            path = _paths(page, "mycluster", "docker", "app%3A1", PUBLIC)[0]
            request = SentRequest(route.method, path.encode() + b"/", ADMIN)
            reply = await place.ask(request.method, bytes(request))
            _check(request, reply)
            statuses[page] = reply.status
    assert statuses == {
        **dict.fromkeys(ROUTES, 200),
        "doimport": 400,
        "login": 400,  # without a login
        "page": 403,  # over plain HTTP, from another machine
        **dict.fromkeys(("remove", "pin", "unpin"), 404),  # the image has expired meanwhile
        "explain": 403,
        "upload": 403,
        "spool": 403,
    }
    assert sum("root(0)" in line for line in lines) == len(ROUTES) - 1
