"""A gateway on a store and a simulated clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from shiftergw.model.records import Expired, Failed, ImageRecord, Ready
from shiftergw.model.requests import ANONYMOUS, Session
from shiftergw.plumbing.seal import Seal
from shiftergw.service.gateway import Gateway, GatewayOptions
from shiftergw.store.sqlite.store import SqliteStore
from tests.configurations import load_config
from tests.work.fakes import FakeQueue

ID = "a" * 64
ALICE = Session("mycluster", "alice", 2001, "users", 2100, frozenset({2100, 2300}))
BOB = Session("mycluster", "bob", 2002, "users", 2100, frozenset({2100}))
ADMIN = Session("mycluster", "root", 0, "root", 0, frozenset({0}), admin=True)
ANONYMOUS_SESSION = Session("mycluster", "anonymous", ANONYMOUS, "anonymous", ANONYMOUS)
START = 1_000_000.0


class Bench:
    """A gateway on a store and a clock; `wakes` counts how often it woke the dispatcher."""

    def __init__(self, store: SqliteStore, **changes: Any) -> None:
        """Configure the gateway with `changes`."""
        self.clock = Clock()
        self.clock.advance(START)
        self.store = store
        self.seal = Seal(b"k" * 32)
        self.queue = FakeQueue(0)
        self.wakes = 0
        config = load_config({"FailureHold": 10, "PullUpdateTimeout": 300, **changes}).config
        self.is_judged = True
        self.gateway = Gateway(
            config,
            store,
            lambda: self.seal,
            self._wake,
            self.clock,
            self.queue,
            GatewayOptions(is_judged=self._is_judged),
        )

    async def _is_judged(self, _: ImageRecord) -> bool:
        return self.is_judged

    def _wake(self) -> None:
        self.wakes += 1

    async def pull(
        self, session: Session, image: str = "app:1", users: tuple[int, ...] = ()
    ) -> Any:
        """Request an image."""
        return await self.gateway.pull(session, "docker", image, users, (), "request")

    async def end(self, outcome: Ready | Expired | Failed) -> None:
        """End the work in flight."""
        (waiting,) = await self.store.waiting(self.clock.seconds(), 1)
        now = self.clock.seconds()
        work = await self.store.begin(waiting.key, "here:1", now, 60)
        assert work is not None
        await self.store.finish(work.key, work.attempt, outcome, now)


READY = Ready(ID, {"private": False, "user_acl": (), "group_acl": ()})
PRIVATE = Ready(ID, {"private": True, "user_acl": (2001,), "group_acl": (2300,)})
DENIED_PULL = Failed("PULLING", "refused", "log in", retryable=False, own=True)
BROKEN_PULL = Failed("PULLING", "broken", "wait", retryable=True)


async def list_images(bench: Bench, session: Session) -> list[ImageRecord]:
    """Return the images that a user sees in the list."""
    return [record async for page in bench.gateway.list(session) for record in page]


async def list_queue(bench: Bench, session: Session) -> list[ImageRecord]:
    """Return the records that a user sees in the queue."""
    return [record async for page in bench.gateway.queue(session) for record in page]
