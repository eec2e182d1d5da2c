"""Check each system's munge daemon, its users and its admins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.app import compose
from shiftergw.app.checkup.finding import Finding, Level, failure
from shiftergw.auth import munge_client
from shiftergw.auth.libmunge import Status
from shiftergw.auth.listing import ListedUsers
from shiftergw.auth.munge_socket import trouble_of
from shiftergw.config import Config, System
from shiftergw.errors import GatewayError, Unavailable, printable
from shiftergw.plumbing.bounded_calls import BoundedThreadCalls
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import UserDirectory

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

MUNGE_LIMIT = 10.0
"""Seconds for a munge daemon to make and read a credential."""

CLOCK_LIMIT = 30.0
"""Seconds by which the clock of a munge daemon may differ from this machine's without a warning."""

MUNGE_TTL = 300.0
"""Seconds for which a credential is valid by default, before and after the time in it."""

_CLOCK = (
    "Set the clocks by NTP on this machine and on the system's nodes, and restart munged. With"
    " clocks that differ, users' credentials count as expired, or as not valid yet."
)


async def users(config: Config, reactor: Reactor) -> AsyncIterator[Finding]:
    """Yield the findings about each system's munge daemon, user directory and admins."""
    threads = Threads(reactor, 4, "check")
    threads.startService()
    try:
        directories = compose.users(config, threads, reactor)
        uses_munge = config.authentication == "munge"
        for name, system in config.systems.items():
            if uses_munge and system.munge_socket_path is not None:
                yield await _munge(name, system.munge_socket_path, threads, reactor)
            if name in directories.listings:
                listing = await _listing(name, directories.listings[name])
                yield listing
                if listing.level == Level.FAILURE:
                    continue
            if uses_munge:  # with mock, any caller may use the name of an admin
                yield await _admins(system, directories.by_system[name])
    finally:
        await threads.stopService()


async def _munge(name: str, socket: Path, threads: Threads, reactor: Reactor) -> Finding:
    """Let a system's munge daemon encode and decode a credential, and compare its clock."""
    name = f"munge of {name}"

    def late() -> Unavailable:
        trouble = trouble_of(socket, Status.TIMEOUT)
        return Unavailable(trouble.what, remedy=trouble.remedy)

    try:
        offset = await BoundedThreadCalls(threads, 1, MUNGE_LIMIT, reactor, late).run(
            munge_client.try_daemon, socket
        )
    except GatewayError as error:
        return failure(name, error)
    if abs(offset) <= CLOCK_LIMIT:
        return Finding(name, Level.OK, f"{socket} answers")
    way = "ahead of" if offset > 0 else "behind"
    text = f"{socket} answers, but its clock is {abs(offset):,.0f} s {way} this machine's"
    return Finding(name, Level.FAILURE if abs(offset) > MUNGE_TTL else Level.WARNING, text, _CLOCK)


async def _listing(name: str, users: ListedUsers) -> Finding:
    name = f"users of {name}"
    try:
        listing = await users.read()
    except GatewayError as error:
        remedy = "Run groupsCommand as the gateway's user: it prints what getent prints."
        return replace(failure(name, error), remedy=remedy)
    return Finding(name, Level.OK, f"{len(listing.users)} users, {len(listing.groups)} groups")


async def _admins(system: System, users: UserDirectory) -> Finding:
    """Find admins that do not exist: a name must be that of a user of the system."""
    name = f"admins of {system.name}"
    names = [admin for admin in system.admins if isinstance(admin, str)]
    try:
        unknown = [user for user in names if await users.uid_of(user) is None]
    except GatewayError as error:
        return failure(name, error)
    if unknown:
        text = f"{printable(', '.join(unknown))}: no such user, so nobody is meant"
        return Finding(name, Level.WARNING, text, "Correct the name, or write the uid.")
    return Finding(name, Level.OK, printable(", ".join(map(str, system.admins))) or "nobody")
