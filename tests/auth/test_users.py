"""Users and groups of the host, and the cache of their queries."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from shiftergw.auth.cached_calls import CachedCalls
from shiftergw.auth.users import CACHE_SECONDS, MAX_AGE, QUERY_LIMIT, HostUsers
from shiftergw.errors import Unavailable
from shiftergw.model.requests import UserAccount
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import UserDirectory
from tests.installed_reactor import reactor
from tests.patience import patient


class CountingThreads(Threads):
    """Threads that count their calls."""

    calls = 0

    def begin(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Count, and run."""
        self.calls += 1
        return super().begin(function, *args, **kwargs)


@pytest.fixture
def threads() -> Iterator[CountingThreads]:
    """Return a pool of threads that runs during the test."""
    pool = CountingThreads(reactor, 2, "test")
    pool.startService()
    yield pool
    pytest_twisted.blockon(pool.stopService())


@pytest_twisted.ensureDeferred
async def test_groups_of_a_user_of_this_host(threads: CountingThreads) -> None:
    """The groups are those of the database, and always the primary group."""
    user = pwd.getpwuid(os.getuid())
    groups: UserDirectory = HostUsers(threads, Clock())
    expected = {g.gr_gid for g in grp.getgrall() if user.pw_name in g.gr_mem} | {user.pw_gid}
    assert await groups.groups(user.pw_name, user.pw_uid, user.pw_gid) >= expected
    assert 54321 in await groups.groups(user.pw_name, user.pw_uid, 54321)


@pytest_twisted.ensureDeferred
async def test_a_user_that_is_unknown_to_the_host(threads: CountingThreads) -> None:
    """Such a user has only the primary group."""
    groups = HostUsers(threads, Clock())
    assert await groups.groups("no-such-user", 54321, 54322) == frozenset({54322})


@pytest_twisted.ensureDeferred
async def test_results_are_cached(threads: CountingThreads) -> None:
    """Within a minute the database is queried once for the same user."""
    clock = Clock()
    groups = HostUsers(threads, clock)
    for _ in range(3):
        await groups.groups("no-such-user", 1, 54322)
    assert threads.calls == 1
    await groups.groups("no-such-user", 1, 54323)
    assert threads.calls == 2
    clock.advance(CACHE_SECONDS)
    await groups.groups("no-such-user", 1, 54322)
    assert threads.calls == 3


@pytest_twisted.ensureDeferred
async def test_accounts_of_this_host(threads: CountingThreads) -> None:
    """Ids have the host's names; an unknown id has its digits as a name."""
    users: UserDirectory = HostUsers(threads, Clock())
    user = pwd.getpwuid(os.getuid())
    account = await users.account(user.pw_uid, user.pw_gid)
    assert (account.user, account.group) == (
        user.pw_name,
        grp.getgrgid(user.pw_gid).gr_name,
    )
    assert account.groups == await users.groups(user.pw_name, user.pw_uid, user.pw_gid)
    assert (await users.account(user.pw_uid, 54321)).groups >= {user.pw_gid, 54321}
    assert await users.account(54321, 54322) == UserAccount("54321", "54322", frozenset({54322}))
    assert (await users.account(54323, 54322)).user != (await users.account(54321, 54322)).user


@pytest_twisted.ensureDeferred
async def test_uids_by_name(threads: CountingThreads) -> None:
    """The name of a user has one uid; an unknown name has none."""
    users: UserDirectory = HostUsers(threads, Clock())
    user = pwd.getpwuid(os.getuid())
    assert await users.uid_of(user.pw_name) == user.pw_uid
    for unknown in ("no-such-user", "", "ro\0ot", str(user.pw_uid)):
        assert await users.uid_of(unknown) is None


@pytest_twisted.ensureDeferred
async def test_concurrent_callers_share_a_query(threads: CountingThreads) -> None:
    """Callers of the same query share its result, even if the first of them is cancelled."""
    users = HostUsers(threads, Clock())
    queries = [Deferred.fromCoroutine(users.account(54321, 54322)) for _ in range(20)]
    queries[0].cancel()
    with pytest.raises(CancelledError):
        await queries[0]
    accounts = [await query for query in queries[1:]]
    assert accounts == [UserAccount("54321", "54322", frozenset({54322}))] * 19
    assert threads.calls == 1


@pytest_twisted.ensureDeferred
async def test_exceptions_are_not_cached() -> None:
    """All waiting callers get the exception; the next caller queries again."""
    answers: list[Deferred[int]] = [Deferred(), Deferred()]
    calls = iter(answers)

    async def query(_: str) -> int:
        return await next(calls)

    cache = CachedCalls(query, 60, Clock())
    callers = [Deferred.fromCoroutine(cache.get("key")) for _ in range(3)]
    answers[0].errback(ValueError())
    for caller in callers:
        with pytest.raises(ValueError):  # noqa: PT011 - it is the exception above
            await caller
    next_caller = Deferred.fromCoroutine(cache.get("key"))
    answers[1].callback(7)
    assert (await next_caller, await cache.get("key")) == (7, 7)


@pytest_twisted.ensureDeferred
async def test_old_results_are_used_while_the_database_hangs(
    threads: CountingThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an hour the last results are used; users without one are unavailable."""
    clock, release = Clock(), Event()
    users: UserDirectory = HostUsers(threads, clock)
    accounts = [await users.account(54321 + number, 54321) for number in range(9)]
    monkeypatch.setattr(pwd, "getpwuid", lambda _: release.wait(patient(60)))
    clock.advance(CACHE_SECONDS)
    waiting = [Deferred.fromCoroutine(users.account(54321 + number, 54321)) for number in range(9)]
    stranger = Deferred.fromCoroutine(users.account(54321, 54322))
    try:
        clock.advance(QUERY_LIMIT)
        assert [await account for account in waiting] == accounts
        assert await users.account(54322, 54321) == accounts[1]
        with pytest.raises(Unavailable):
            await stranger
        clock.advance(MAX_AGE)
        with pytest.raises(Unavailable):
            await users.account(54321, 54321)
    finally:
        release.set()


@pytest_twisted.ensureDeferred
async def test_old_results_are_dropped() -> None:
    """Results that are no longer queried take no memory."""
    clock = Clock()

    async def query(key: int) -> int:
        return key

    cache = CachedCalls(query, 60, clock)
    for key in range(1000):
        await cache.get(key)
        clock.advance(1)
    assert len(cache._results) <= 121
