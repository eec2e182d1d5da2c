"""Groups from the host's database."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.task import Clock

from shiftergw.auth.users import CACHED_SECONDS, HostUsers
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import UserDirectory

reactor: Any = global_reactor


class CountingThreads(Threads):
    """Threads that count what they are asked to do."""

    asked = 0

    async def run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Count, and run."""
        self.asked += 1
        return await super().run(function, *args, **kwargs)


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
