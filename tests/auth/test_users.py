"""Users and groups from the host's database."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.auth.remembered import Remembered
from shiftergw.auth.users import (
    ASKING_LIMIT,
    CACHED_SECONDS,
    LARGEST_AGE,
    Account,
    HostUsers,
    Users,
)
from shiftergw.errors import Unavailable
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import UserDirectory
from tests.patience import patient

reactor: Any = global_reactor


class CountingThreads(Threads):
    """Threads that count what they are asked to do."""

    asked = 0

    def begin(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Count, and run."""
        self.asked += 1
        return super().begin(function, *args, **kwargs)


@pytest.fixture
def threads() -> Iterator[CountingThreads]:
    """Give a pool of threads that runs while the test does."""
    pool = CountingThreads(reactor, 2, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


@pytest_twisted.ensureDeferred
async def test_groups_of_a_user_of_this_host(threads: CountingThreads) -> None:
    """The groups are those of the database, and the primary one in any case."""
    me = pwd.getpwuid(os.getuid())
    groups: UserDirectory = HostUsers(threads, Clock())
    expected = {g.gr_gid for g in grp.getgrall() if me.pw_name in g.gr_mem} | {me.pw_gid}
    assert await groups.groups(me.pw_name, me.pw_uid, me.pw_gid) >= expected
    assert 54321 in await groups.groups(me.pw_name, me.pw_uid, 54321)


@pytest_twisted.ensureDeferred
async def test_user_whom_the_host_does_not_know(threads: CountingThreads) -> None:
    """Such a user has his primary group."""
    groups = HostUsers(threads, Clock())
    assert await groups.groups("no-such-user", 54321, 54322) == frozenset({54322})


@pytest_twisted.ensureDeferred
async def test_answers_are_kept_for_a_while(threads: CountingThreads) -> None:
    """A second question within a minute asks nobody; a later one does."""
    clock = Clock()
    groups = HostUsers(threads, clock)
    for _ in range(3):
        await groups.groups("no-such-user", 1, 54322)
    assert threads.asked == 1
    await groups.groups("no-such-user", 1, 54323)
    assert threads.asked == 2
    clock.advance(CACHED_SECONDS)
    await groups.groups("no-such-user", 1, 54322)
    assert threads.asked == 3


@pytest_twisted.ensureDeferred
async def test_accounts(threads: CountingThreads) -> None:
    """Ids have the host's names; those that it does not know are called by their digits."""
    users: Users = HostUsers(threads, Clock())
    me = pwd.getpwuid(os.getuid())
    account = await users.account(me.pw_uid, me.pw_gid)
    assert (account.user, account.group) == (me.pw_name, grp.getgrgid(me.pw_gid).gr_name)
    assert account.groups == await users.groups(me.pw_name, me.pw_uid, me.pw_gid)
    assert (await users.account(me.pw_uid, 54321)).groups >= {me.pw_gid, 54321}
    assert await users.account(54321, 54322) == Account("54321", "54322", frozenset({54322}))
    assert (await users.account(54323, 54322)).user != (await users.account(54321, 54322)).user


@pytest_twisted.ensureDeferred
async def test_uids(threads: CountingThreads) -> None:
    """A user's name means one uid, or nobody's."""
    users: Users = HostUsers(threads, Clock())
    me = pwd.getpwuid(os.getuid())
    assert await users.uid_of(me.pw_name) == me.pw_uid
    for unknown in ("no-such-user", "", "ro\0ot", str(me.pw_uid)):
        assert await users.uid_of(unknown) is None


@pytest_twisted.ensureDeferred
async def test_one_question_for_all(threads: CountingThreads) -> None:
    """Those who ask the same at the same time share the answer, whoever of them goes away."""
    users = HostUsers(threads, Clock())
    asking = [Deferred.fromCoroutine(users.account(54321, 54322)) for _ in range(20)]
    asking[0].cancel()
    with pytest.raises(CancelledError):
        await asking[0]
    accounts = [await one for one in asking[1:]]
    assert accounts == [Account("54321", "54322", frozenset({54322}))] * 19
    assert threads.asked == 1


@pytest_twisted.ensureDeferred
async def test_errors_are_not_kept() -> None:
    """Who waits hears of an error; who comes later asks anew."""
    answers: list[Deferred[int]] = [Deferred(), Deferred()]
    asked = iter(answers)

    async def ask(question: str) -> int:
        return await next(asked)

    remembered = Remembered(ask, 60, Clock())
    first = [Deferred.fromCoroutine(remembered.get("question")) for _ in range(3)]
    answers[0].errback(ValueError())
    for one in first:
        with pytest.raises(ValueError):  # noqa: PT011 - it is the one above
            await one
    later = Deferred.fromCoroutine(remembered.get("question"))
    answers[1].callback(7)
    assert (await later, await remembered.get("question")) == (7, 7)


@pytest_twisted.ensureDeferred
async def test_old_answers_while_the_database_hangs(
    threads: CountingThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users are known for an hour by what the database said last; new ones are not."""
    clock, release = Clock(), Event()
    users: Users = HostUsers(threads, clock)
    accounts = [await users.account(54321 + number, 54321) for number in range(9)]
    monkeypatch.setattr(pwd, "getpwuid", lambda _: release.wait(patient(60)))
    clock.advance(CACHED_SECONDS)
    waiting = [Deferred.fromCoroutine(users.account(54321 + number, 54321)) for number in range(9)]
    stranger = Deferred.fromCoroutine(users.account(54321, 54322))
    try:
        clock.advance(ASKING_LIMIT)
        assert [await account for account in waiting] == accounts
        assert await users.account(54322, 54321) == accounts[1]
        with pytest.raises(Unavailable):
            await stranger
        clock.advance(LARGEST_AGE)
        with pytest.raises(Unavailable):
            await users.account(54321, 54321)
    finally:
        release.set()


@pytest_twisted.ensureDeferred
async def test_old_answers_are_forgotten() -> None:
    """What nobody asks for any more takes no memory."""
    clock = Clock()

    async def ask(question: int) -> int:
        return question

    remembered = Remembered(ask, 60, clock)
    for question in range(1000):
        await remembered.get(question)
        clock.advance(1)
    assert len(remembered._known) <= 121
