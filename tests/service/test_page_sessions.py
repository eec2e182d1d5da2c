"""Entries work once and for a short time; sessions of browsers end, and cannot be forged."""

from __future__ import annotations

import base64
import json

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from shiftergw.errors import NotAuthenticated, Unavailable
from shiftergw.plumbing.seal import Seal
from shiftergw.service import page_sessions
from shiftergw.service.page_sessions import ENTRY_SECONDS, SESSION_SECONDS, PageSessions
from tests.service.gateway_bench import ALICE, ANONYMOUS_SESSION

SEAL = Seal(b"k" * 32)


class SharedCredentials:
    """What gateways on one store share; `raises` while the store is away."""

    def __init__(self) -> None:
        """Know no digest."""
        self.digests: set[bytes] = set()
        self.raises: Exception | None = None

    async def use(self, digest: bytes, now: float) -> bool:
        """Record a digest; return whether it is new."""
        if self.raises is not None:
            raise self.raises
        is_new = digest not in self.digests
        self.digests.add(digest)
        return is_new

    async def note_used(self, digests: object, now: float) -> None:
        """Do nothing."""


@pytest.fixture
def clock() -> Clock:
    """Return a clock."""
    return Clock()


def sessions_at(clock: Clock, used: SharedCredentials | None = None) -> PageSessions:
    """Return the sessions of a gateway; all have the same key."""
    return PageSessions(lambda: SEAL, used, clock)


@pytest_twisted.ensureDeferred
async def test_an_entry_opens_the_session_of_its_user(clock: Clock) -> None:
    """The session has the names and ids of the user, and no groups, rights or logins."""
    sessions = sessions_at(clock)
    entry = sessions.make_entry(ALICE)
    assert entry.replace("-", "").replace("_", "").isalnum()
    token, session = await sessions.enter(entry)
    assert sessions.find(token) == session
    user = session.user
    assert (user.system, user.user, user.uid, user.gid) == ("mycluster", "alice", 2001, 2100)
    assert (user.groups, user.admin, user.logins) == (frozenset(), False, {})


@pytest.mark.parametrize("is_shared", [False, True])
@pytest_twisted.ensureDeferred
async def test_an_entry_works_once(clock: Clock, is_shared: bool) -> None:
    """A second use is refused, at every gateway of the site, also in another spelling."""
    used = SharedCredentials() if is_shared else None
    sessions = sessions_at(clock, used)
    gateways = [sessions, sessions_at(clock, used) if is_shared else sessions]
    entry = sessions.make_entry(ALICE)
    await gateways[1].enter(entry)
    for gateway in gateways:
        for text in (entry, f"{entry}=", f" {entry}\n"):
            with pytest.raises(NotAuthenticated, match="opened before"):
                await gateway.enter(text)


@pytest_twisted.ensureDeferred
async def test_an_entry_is_not_used_up_while_the_store_is_away(clock: Clock) -> None:
    """Nobody can know then whether it was used: it is refused, and works later."""
    used = SharedCredentials()
    sessions = sessions_at(clock, used)
    entry = sessions.make_entry(ALICE)
    used.raises = Unavailable("The database is away.")
    with pytest.raises(Unavailable):
        await sessions.enter(entry)
    used.raises = None
    await sessions.enter(entry)


@pytest_twisted.ensureDeferred
async def test_a_gateway_alone_refuses_entries_from_before_its_start(clock: Clock) -> None:
    """After a restart it cannot know whether they were used; sessions live on."""
    sessions = sessions_at(clock)
    token, _ = await sessions.enter(sessions.make_entry(ALICE))
    entry = sessions.make_entry(ALICE)
    restarted_sessions = sessions_at(clock)
    with pytest.raises(NotAuthenticated):
        await restarted_sessions.enter(entry)
    restarted_sessions.find(token)


@pytest_twisted.ensureDeferred
async def test_entries_and_sessions_grow_old(clock: Clock) -> None:
    """An entry lives for five minutes, a session for four hours."""
    sessions = sessions_at(clock, SharedCredentials())
    token, _ = await sessions.enter(sessions.make_entry(ALICE))
    entry = sessions.make_entry(ALICE)
    clock.advance(ENTRY_SECONDS)
    with pytest.raises(NotAuthenticated):
        await sessions.enter(entry)
    clock.advance(SESSION_SECONDS - ENTRY_SECONDS - 1)
    sessions.find(token)
    clock.advance(1)
    with pytest.raises(NotAuthenticated, match="has ended"):
        sessions.find(token)


@pytest_twisted.ensureDeferred
async def test_a_session_that_its_user_has_ended_is_refused(clock: Clock) -> None:
    """A copy of its cookie counts no longer; other sessions do."""
    sessions = sessions_at(clock)
    token, session = await sessions.enter(sessions.make_entry(ALICE))
    other_token, _ = await sessions.enter(sessions.make_entry(ALICE))
    sessions.end(session)
    with pytest.raises(NotAuthenticated, match="has ended"):
        sessions.find(token)
    sessions.find(other_token)


@pytest_twisted.ensureDeferred
async def test_the_memory_of_entries_is_bounded(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If too many are made, the oldest is refused, instead of being accepted twice."""
    monkeypatch.setattr(page_sessions, "MOST_REMEMBERED", 2)
    sessions = sessions_at(clock)
    first, _, last = (sessions.make_entry(ALICE) for _ in range(3))
    with pytest.raises(NotAuthenticated):
        await sessions.enter(first)
    await sessions.enter(last)


def test_callers_without_a_credential_get_no_entry(clock: Clock) -> None:
    """The page is for known users, also where anonymous requests are allowed."""
    with pytest.raises(NotAuthenticated, match="known users"):
        sessions_at(clock).make_entry(ANONYMOUS_SESSION)


def closed(members: object, purpose: str) -> str:
    """Return a text that has the key of the site."""
    return SEAL.close(json.dumps(members), purpose)


@pytest_twisted.ensureDeferred
async def test_forged_and_strange_texts_are_refused(clock: Clock) -> None:
    """Neither is an entry a token, nor a token an entry; damaged texts are nothing."""
    sessions = sessions_at(clock)
    entry = sessions.make_entry(ALICE)
    token, _ = await sessions.enter(sessions.make_entry(ALICE))
    strange_key = PageSessions(lambda: Seal(b"x" * 32), None, clock).make_entry(ALICE)
    for text in (
        *("", "A", "é", "=" * 9, token[:-4], f"{token[:30]}x{token[31:]}", entry, strange_key),
        base64.b64encode(b"{}" * 40).decode(),
        closed([], "session of a page"),
        closed({"end": 1e9}, "session of a page"),
        closed(
            dict.fromkeys(("system", "user", "uid", "group", "gid", "end")), "session of a page"
        ),
    ):
        with pytest.raises(NotAuthenticated):
            sessions.find(text)
    with pytest.raises(NotAuthenticated):
        await sessions.enter(token)
