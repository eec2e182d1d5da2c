"""A system's users as a command lists them, for sites whose gateway does not know them itself.

The command prints what `getent passwd` and `getent group` print on the system, one after the
other, for example `["ssh", "login1", "getent passwd; getent group"]`. Lines have the fields of
passwd(5) and of group(5); of these

    NAME:…:UID:GID:…:…:…        is a user with his primary group,
    NAME:…:GID:USER,USER,…      a group with its members,

and the fields `…` are not read. Of two lines with one name or one id the first counts, as on the
system. A listing with any other line, without users, or without its last end of line is refused as
a whole: half a listing would take people's groups away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from shiftergw.auth.users import Account
from shiftergw.errors import GatewayError, Unavailable, printable
from shiftergw.names import HIGHEST_ID
from shiftergw.plumbing.process import Command, run_command
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within

REFRESH_SECONDS = 300.0
"""How old a listing gets before the command runs again."""

LARGEST_AGE = 3600.0
"""Seconds for which a listing is believed: who has left a group must not keep its images."""

RETRY_SECONDS = 15.0
"""After how long the command is tried again while there is no listing to answer from."""

COMMAND_LIMIT = 60.0
"""Seconds that the command may run."""

WAIT_LIMIT = 10.0
"""Seconds that a request waits for a listing where there is none to answer from."""

LARGEST = 64 << 20
"""Bytes of the largest listing: some 500,000 users."""

_USER_FIELDS = 7
_GROUP_FIELDS = 4
_LONGEST_NAME = 256


@dataclass(slots=True)
class Listing:
    """Users and groups by name and by number."""

    users: dict[int, tuple[str, int]] = field(default_factory=dict)
    uids: dict[str, int] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    members: dict[str, set[int]] = field(default_factory=dict)

    def groups_of(self, user: str, gid: int) -> frozenset[int]:
        """Return the gids of a user by name; of one who is not listed, `gid` alone."""
        uid = self.uids.get(user)
        if uid is None:
            return frozenset({gid})
        return frozenset({gid, self.users[uid][1], *self.members.get(user, ())})


def parse(output: bytes) -> Listing:
    """Return what a command has printed; raise `Unavailable` with the number of a bad line."""
    listing = Listing()
    *lines, rest = output.decode("utf-8", "replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not _understood(line.split(":"), listing):
            # Not repeated: on some systems a line holds the hash of a password.
            raise _unusable(f"its line {number} is neither of passwd(5) nor of group(5)")
    if rest:
        raise _unusable("its last line is not ended: it may have been cut off")
    if not listing.users:
        raise _unusable("it has no users")
    return listing


def _unusable(detail: str) -> Unavailable:
    return Unavailable("The listing of the system's users is of no use.", detail=detail)


def _understood(fields: Sequence[str], listing: Listing) -> bool:
    """Take a line over; say whether it is one."""
    name = fields[0]
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        return False
    if len(fields) == _USER_FIELDS:
        uid, gid = _id(fields[2]), _id(fields[3])
        if uid is None or gid is None:
            return False
        if name not in listing.uids:
            listing.uids[name] = uid
            listing.users.setdefault(uid, (name, gid))
        return True
    gid = _id(fields[2]) if len(fields) == _GROUP_FIELDS else None
    if gid is None:
        return False
    listing.groups.setdefault(gid, name)
    for member in filter(None, fields[3].split(",")):
        listing.members.setdefault(member, set()).add(gid)
    return True


def _id(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):  # noqa: PLR2004 - 2**32
        return None
    return int(text) if int(text) <= HIGHEST_ID else None


class ListedUsers(Service):
    """`Users` of the last good listing; one run of the command serves all requests.

    With a listing that is too old nobody is known: `Unavailable`.
    """

    _log = Logger()

    def __init__(
        self,
        system: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        threads: Threads,
        reactor: Any,
    ) -> None:
        """Run `argv`, without a shell, for the users of `system`."""
        self.setName(f"users of {system}")
        self._system = system
        self._command = Command(argv, env, total=COMMAND_LIMIT, output_limit=LARGEST + 1)
        self._threads = threads
        self._reactor = reactor
        self._listing: Listing | None = None
        self._listed = 0.0
        self._problem = ""
        self._refreshing: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self._next = 0.0

    def startService(self) -> None:
        """Begin with the first listing; the start does not wait for it."""
        super().startService()
        self._refresh_if_old()

    def stopService(self) -> Deferred[None] | None:
        """Fire when the command has ended, if it runs."""
        super().stopService()
        if self._refreshing is None:
            return None
        ended: Deferred[None] = Deferred()
        self._waiting.append(ended)
        self._refreshing.cancel()
        return ended

    async def read(self) -> Listing:
        """Return a new listing and keep it; raise what is wrong with the command or its output."""
        begun = self._reactor.seconds()
        finished = await run_command(self._command, self._reactor, self._reactor)
        if len(finished.stdout) > LARGEST:
            raise _unusable(f"it is larger than {LARGEST} bytes")
        self._listing = await self._threads.run(parse, finished.stdout)
        self._listed = begun
        return self._listing

    async def current(self) -> Listing:
        """Return the last good listing, and see that there is a newer one before long.

        Raises `Unavailable` if there is none, or none that is younger than `LARGEST_AGE`.
        """
        self._refresh_if_old()
        if self._believed() is None and self._refreshing is not None:
            next_one: Deferred[None] = Deferred()
            self._waiting.append(next_one)
            await within(WAIT_LIMIT, self._reactor, next_one, self._away)
        listing = self._believed()
        if listing is None:
            raise self._away()
        return listing

    def _believed(self) -> Listing | None:
        """Return the last good listing unless it is too old."""
        young = self._reactor.seconds() - self._listed < LARGEST_AGE
        return self._listing if young else None

    def _away(self) -> Unavailable:
        what = f"The gateway cannot look the users of {self._system} up."
        detail = self._problem or "groupsCommand: it has not ended yet."
        if self._listing is not None:
            age = (self._reactor.seconds() - self._listed) / 60
            detail = f"The last good listing is {age:.0f} min old, which is too old. {detail}"
        return Unavailable(what, detail=detail)

    def _refresh_if_old(self) -> None:
        if self._refreshing is None and self.running and self._reactor.seconds() >= self._next:
            self._refreshing = Deferred.fromCoroutine(self._refresh())
            self._refreshing.addBoth(self._ended)

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

    def _ended(self, result: Failure | None) -> None:
        self._refreshing = None
        # What failed is tried again soon only where there is nothing to answer with.
        pause = RETRY_SECONDS if self._believed() is None else REFRESH_SECONDS
        self._next = self._reactor.seconds() + pause
        if isinstance(result, Failure) and result.check(CancelledError) is None:
            self._log.failure("listing the users of {system}", result, system=self._system)
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    async def account(self, uid: int, gid: int) -> Account:
        """Return names and groups, as `Users` says."""
        listing = await self.current()
        group = listing.groups.get(gid, str(gid))
        if uid not in listing.users:
            return Account(str(uid), group, frozenset({gid}))
        user = listing.users[uid][0]
        return Account(user, group, listing.groups_of(user, gid))

    async def groups(self, user: str, uid: int, gid: int) -> frozenset[int]:  # noqa: ARG002
        """Return the gids of a user; of one who is not listed, his primary one."""
        return (await self.current()).groups_of(user, gid)

    async def uid_of(self, user: str) -> int | None:
        """Return the uid of a user by name, as `Users` says."""
        return (await self.current()).uids.get(user)
