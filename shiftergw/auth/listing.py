"""The users of a system as a command lists them, for sites whose gateway does not know them itself.

An example of a command is `["ssh", "login1", "getent passwd; getent group"]`. It runs every
`REFRESH_SECONDS` if there are requests; all requests are answered from its last good listing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from shiftergw.auth.getent import Listing, parse, unusable
from shiftergw.errors import GatewayError, Unavailable, printable
from shiftergw.model.requests import UserAccount
from shiftergw.plumbing.process import Command, run_command
from shiftergw.plumbing.shared_result import SharedResult
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

REFRESH_SECONDS = 300.0
"""Seconds after which the command runs again."""

MAX_AGE = 3600.0
"""Seconds for which a listing is used: a user who has left a group must lose its images."""

RETRY_SECONDS = 15.0
"""Seconds after which the command runs again while there is no listing to answer from."""

COMMAND_LIMIT = 60.0
"""Seconds that the command may run."""

WAIT_LIMIT = 10.0
"""Seconds that a request waits for a listing if there is none to answer from."""

MAX_BYTES = 64 << 20
"""Bytes of the longest listing: some 500,000 users."""


class ListingState(Enum):
    """What the command that lists users is doing."""

    STOPPED = auto()  # the service is not running, nor is the command
    RUNNING = auto()  # the command runs
    WAITING = auto()  # the command has ended, and runs again for a request after some time
    STOPPING = auto()  # the service is being stopped, and the command has been cancelled


S = ListingState

STEPS: dict[ListingState, frozenset[ListingState]] = {
    S.STOPPED: frozenset({S.RUNNING}),
    S.RUNNING: frozenset({S.WAITING, S.STOPPING}),
    S.WAITING: frozenset({S.RUNNING, S.STOPPED}),
    S.STOPPING: frozenset({S.STOPPED}),
}
"""From each state, the states a single step may lead to."""


class ListedUsers(Service):
    """A `UserDirectory` that answers from the last good listing of a command.

    One run of the command serves all requests. `STEPS` says how the state changes. A listing that
    is older than `MAX_AGE` is not used: methods raise `Unavailable`.
    """

    _log = Logger()

    def __init__(
        self,
        system: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        threads: Threads,
        reactor: Reactor,
    ) -> None:
        """Run `argv`, without a shell, for the users of `system`."""
        self.setName(f"users of {system}")
        self.state = S.STOPPED
        self._system = system
        self._command = Command(argv, env, total=COMMAND_LIMIT, output_limit=MAX_BYTES + 1)
        self._threads = threads
        self._reactor = reactor
        self._listing: Listing | None = None
        self._listed_at = 0.0
        """When the command of the last good listing was started."""
        self._problem = ""
        self._run: Deferred[None]
        """The run of the command, which can be cancelled; set in the state RUNNING."""
        self._run_end: SharedResult[None] = SharedResult()
        self._next_run = 0.0

    def _step(self, state: ListingState) -> None:
        assert state in STEPS[self.state], f"{self.state} -> {state}"
        self.state = state

    def startService(self) -> None:
        """Start the first run; the start of the service does not wait for its end."""
        super().startService()
        self._start_run()

    def stopService(self) -> Deferred[None] | None:
        """Stop the command; return a Deferred that fires when it has ended."""
        super().stopService()
        if self.state is S.WAITING:
            self._step(S.STOPPED)
        if self.state is not S.RUNNING:
            return None
        self._step(S.STOPPING)
        end = Deferred.fromCoroutine(self._run_end.wait())
        self._run.cancel()
        return end

    def _start_run(self) -> None:
        self._step(S.RUNNING)
        self._run_end = SharedResult()
        self._run = Deferred.fromCoroutine(self._refresh())
        self._run.addBoth(self._end_run)

    def _end_run(self, result: Failure | None) -> None:
        self._step(S.STOPPED if self.state is S.STOPPING else S.WAITING)
        # A failed run is repeated soon only if there is no listing to answer from.
        pause = RETRY_SECONDS if self._usable_listing() is None else REFRESH_SECONDS
        self._next_run = self._reactor.seconds() + pause
        if isinstance(result, Failure) and result.check(CancelledError) is None:
            self._log.failure("listing the users of {system}", result, system=self._system)
        self._run_end.set_result(None)

    async def _refresh(self) -> None:
        try:
            await self.read()
            self._problem = ""
        except GatewayError as error:
            self._problem = f"groupsCommand: {error.what} {printable(error.detail)}"
            self._log.warn(
                "the users of {system} could not be listed anew: {problem}",
                system=self._system,
                problem=self._problem,
            )

    async def read(self) -> Listing:
        """Run the command and use its listing from now on; raise `GatewayError`."""
        start = self._reactor.seconds()
        process = await run_command(self._command, self._reactor, self._reactor)
        if len(process.stdout) > MAX_BYTES:
            raise unusable(f"it is larger than {MAX_BYTES} bytes")
        self._listing = await self._threads.run(parse, process.stdout)
        self._listed_at = start
        return self._listing

    async def current(self) -> Listing:
        """Return the last good listing, and start the next run if it is due.

        Waits for the run if there is no listing to answer from. Raises `Unavailable` if there is
        still none then, or none that is younger than `MAX_AGE`.
        """
        if self.state is S.WAITING and self._reactor.seconds() >= self._next_run:
            self._start_run()
        if self._usable_listing() is None and self.state is S.RUNNING:
            await within(WAIT_LIMIT, self._reactor, self._run_end.wait(), self._unavailable)
        listing = self._usable_listing()
        if listing is None:
            raise self._unavailable()
        return listing

    def _usable_listing(self) -> Listing | None:
        """Return the last good listing unless it is too old."""
        is_young = self._reactor.seconds() - self._listed_at < MAX_AGE
        return self._listing if is_young else None

    def _unavailable(self) -> Unavailable:
        detail = self._problem or "groupsCommand: it has not ended yet."
        if self._listing is not None:
            age = (self._reactor.seconds() - self._listed_at) / 60
            detail = f"The last good listing is {age:.0f} min old, which is too old. {detail}"
        return Unavailable(
            f"The gateway cannot look the users of {self._system} up.", detail=detail
        )

    async def account(self, uid: int, gid: int) -> UserAccount:
        """Return names and groups of a user, as `UserDirectory` says."""
        listing = await self.current()
        group = listing.groups.get(gid, str(gid))
        if uid not in listing.users:
            return UserAccount(str(uid), group, frozenset({gid}))
        user = listing.users[uid][0]
        return UserAccount(user, group, listing.groups_of(user, gid))

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:  # noqa: ARG002
        """Return the gids of a user; only `gid` for a user who is not listed."""
        return (await self.current()).groups_of(user, gid)

    async def uid_of(self, user: str) -> int | None:
        """Return the uid of a user, as `UserDirectory` says."""
        return (await self.current()).uids.get(user)
