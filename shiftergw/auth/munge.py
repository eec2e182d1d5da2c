"""Credentials of munge(7): made and read for the command line, and understood for the gateway."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shiftergw.auth.batched import Batched
from shiftergw.auth.libmunge import LARGEST, Decoded, Munge, Status, find_munge
from shiftergw.auth.munge_socket import trouble_of
from shiftergw.auth.payload import logins
from shiftergw.auth.users import Users
from shiftergw.errors import ChildFailed, NotAuthenticated, Unavailable
from shiftergw.model import Session

if TYPE_CHECKING:
    from pathlib import Path

DECODING_LIMIT = 5.0
"""Seconds until a daemon that does not answer counts as away; a healthy one takes a millisecond."""

_FORM = re.compile(r"MUNGE:[A-Za-z0-9+/]+={0,2}:")
_NO_CREDENTIAL = "(null)"
"""What `shifterimg` sends when the munge daemon beside it gave it no credential."""

_AWAY = "munge does not answer on this machine."
_AWAY_REMEDY = "See that munged runs (`systemctl status munge`), or tell the site's support."
_DAMAGED = "This credential cannot be read on this machine."
_LOG_IN = "Log in again: `shiftergw login`, or `shifterimg login`."

_CLOCKS_DIFFER = "the clocks of the client's machine and the gateway's differ by that much."
_NONE = (
    "This is no munge credential.",
    "Use a client that sends one, such as `shifterimg` or `shiftergw`.",
)
_WRONG: dict[Status, tuple[str, str]] = {
    Status.BAD_LENGTH: (
        "The credential is too long.",
        "It carries all your logins: remove those that you do not need from ~/.udiRoot/.cred.",
    ),
    Status.INVALID: (
        "The credential is not valid for {system}.",
        "It is another system's, or damaged: check `system` in the client's configuration.",
    ),
    Status.BAD_REALM: (
        "The credential is of another munge realm than {system}'s.",
        "Check `system` in the client's configuration.",
    ),
    Status.EXPIRED: (
        "The credential has expired{age}.",
        f"Send a fresh one. If it was fresh, {_CLOCKS_DIFFER}",
    ),
    Status.REWOUND: (
        "The credential is not valid yet{age}.",
        f"Tell the site's support: {_CLOCKS_DIFFER}",
    ),
    Status.REPLAYED: (
        "The credential has been used before.",
        "Each counts once: send a fresh one with each request.",
    ),
    Status.UNAUTHORIZED: (
        "The credential is for another user or group than the gateway's.",
        "Make it without a restriction (munge -u, -g).",
    ),
}
"""What is wrong with a credential, and what to do; every other bad one is none at all."""

_TROUBLE = frozenset(
    {Status.SNAFU, Status.NO_MEMORY, Status.OVERFLOW, Status.SOCKET, Status.TIMEOUT}
)
"""What is wrong with a daemon, or with us."""


def encode(payload: bytes, socket: Path | None = None, munge: Munge | None = None) -> str:
    """Return a credential of the calling user with the daemon's own defaults; blocking.

    Raises `Unavailable` when munge is away, and `NotAuthenticated` for a payload it does not take.
    """
    try:
        status, credential = (munge or find_munge()).encode(payload, socket)
    except ChildFailed as error:
        raise Unavailable(_AWAY, remedy=_AWAY_REMEDY, detail=str(error)) from error
    if status == Status.BAD_LENGTH:
        raise NotAuthenticated(
            "These are too many logins for one credential.",
            remedy="Remove those that you do not need from ~/.udiRoot/.cred.",
        )
    if status != Status.SUCCESS or not credential:
        raise _unusable(socket, status)
    return credential


def _unusable(socket: Path | None, status: Status) -> Unavailable:
    """Return the error of a daemon that cannot be used; its cause is in the detail."""
    trouble = trouble_of(socket, status)
    return Unavailable(_AWAY, remedy=_AWAY_REMEDY, detail=trouble.what)


def try_daemon(socket: Path, munge: Munge | None = None) -> float:
    """Have a daemon make and read a credential; return by how many seconds its clock is ahead.

    A clock that is behind gives a negative number. Blocks. Raises `Unavailable` with cause and
    remedy.
    """
    munge = munge or find_munge()
    try:
        status, credential = munge.encode(b"", socket)
        if status == Status.SUCCESS:
            decoded = munge.decode(credential.encode(), socket)
            if decoded.status == Status.SUCCESS and decoded.made_at is not None:
                return decoded.made_at - time.time()
            status = decoded.status
    except ChildFailed as error:
        raise Unavailable(
            f"{error.what}",
            remedy="Install munge: the library libmunge, or the programs munge and unmunge.",
        ) from error
    trouble = trouble_of(socket, status)
    raise Unavailable(trouble.what, remedy=trouble.remedy)


def decode_own(credential: str, socket: Path | None = None, munge: Munge | None = None) -> bytes:
    """Return the payload of a credential that the calling user made once; blocking.

    It may be expired or used (that is how `~/.udiRoot/.cred` keeps logins), but nobody else's.
    Raises `NotAuthenticated`, and `Unavailable` when munge is away.
    """
    content = credential.encode("utf-8", "replace")
    try:
        decoded = (munge or find_munge()).decode(content, socket)
    except ChildFailed as error:
        raise Unavailable(_AWAY, remedy=_AWAY_REMEDY, detail=str(error)) from error
    if decoded.status in _TROUBLE:
        raise _unusable(socket, decoded.status)
    if decoded.status not in {Status.SUCCESS, Status.EXPIRED, Status.REPLAYED}:
        raise NotAuthenticated(_DAMAGED, remedy=_LOG_IN, detail=decoded.status.name)
    if decoded.uid != os.getuid():
        raise NotAuthenticated("This credential is another user's.", remedy=_LOG_IN)
    return decoded.payload


def used_before() -> NotAuthenticated:
    """Return what to say of a credential that was used, here or at another gateway."""
    what, remedy = _WRONG[Status.REPLAYED]
    return NotAuthenticated(what, remedy=remedy)


def digest_of(credential: str) -> bytes:
    """Return what a credential that a daemon has accepted is told by, however it is written.

    Daemons do not look at the bits that the last characters of base64 have too many, so that one
    credential can be written in several ways. All of its bytes are under its MAC.
    """
    text = credential.strip().removeprefix("MUNGE:").rstrip(":=")
    content = base64.b64decode(text + "=" * (-len(text) % 4))
    return hashlib.sha256(content).digest()


class MungeAuthenticator:
    """Knows the users of one system by the munge daemon that has the system's key.

    Each credential is given to the daemon once, and counts once: the daemon refuses it the second
    time. Who it is says the credential's own uid and gid; names and groups come from `users`.
    """

    def __init__(
        self,
        system: str,
        socket: Path,
        users: Users,
        admins: Collection[str | int],
        reactor: Any,
        munge: Munge | None = None,
    ) -> None:
        """Ask the daemon at `socket`; `admins` are uids, or names of `users`."""
        self._system = system
        self._socket = socket
        self._users = users
        self._admin_uids = frozenset(one for one in admins if isinstance(one, int))
        self._admin_names = [one for one in admins if isinstance(one, str)]
        self._munge = munge or find_munge()
        self._decoding = Batched(self._decoded, DECODING_LIMIT, reactor, self._late)

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session of whoever made the credential.

        Raises `NotAuthenticated`, `BadRequest` for what it carries, and `Unavailable` while the
        daemon or the directory of users is away.
        """
        if system != self._system:
            raise NotAuthenticated(f"The credential is not for {system}.")
        decoded = await self._decode(credential.strip())
        account = await self._users.account(decoded.uid, decoded.gid)
        return Session(
            system=system,
            user=account.user,
            uid=decoded.uid,
            group=account.group,
            gid=decoded.gid,
            groups=account.groups,
            logins=logins(decoded.payload),
            admin=await self._is_admin(decoded.uid),
        )

    async def _decode(self, credential: str) -> Decoded:
        if credential == _NO_CREDENTIAL:
            raise NotAuthenticated(
                "The client could not make a credential: munge was away where it ran.",
                remedy="See that munged runs there, or tell the site's support.",
            )
        if len(credential) > LARGEST:
            raise self._wrong(Status.BAD_LENGTH)
        if _FORM.fullmatch(credential) is None:
            raise self._wrong(Status.BAD_CREDENTIAL)
        try:
            decoded = await self._decoding.run(credential.encode("ascii"))
        except ChildFailed as error:
            raise self._away(str(error)) from error
        if decoded.status in _TROUBLE:
            raise self._away(decoded.trouble or decoded.status.name)
        if decoded.status != Status.SUCCESS:
            raise self._wrong(decoded.status, decoded.age)
        if decoded.uid < 0 or decoded.gid < 0:
            raise self._away(f"{self._socket}: munged gave no uid or gid for a credential.")
        return decoded

    def _decoded(self, credential: bytes) -> Decoded:
        decoded = self._munge.decode(credential, self._socket)
        if decoded.status in _TROUBLE:
            trouble = trouble_of(self._socket, decoded.status)
            return replace(decoded, trouble=f"{trouble.what} {trouble.remedy}")
        return decoded

    async def _is_admin(self, uid: int) -> bool:
        if uid in self._admin_uids:
            return True
        return any([await self._users.uid_of(name) == uid for name in self._admin_names])

    def _wrong(self, status: Status, age: float | None = None) -> NotAuthenticated:
        what, remedy = _WRONG.get(status, _NONE)
        return NotAuthenticated(what.format(system=self._system, age=_age_text(age)), remedy=remedy)

    def _late(self) -> Unavailable:
        return self._away(f"{self._socket}: munged did not answer within {DECODING_LIMIT:g} s.")

    def _away(self, why: str) -> Unavailable:
        return Unavailable(
            f"The gateway cannot check credentials of {self._system} at the moment.",
            detail=why,
        )


def _age_text(age: float | None) -> str:
    """Return how old a credential is, or when it will be made, for an error."""
    if age is None:
        return ""
    if age < 0:
        return f": by its own clock it was made {-age:,.0f} s from now"
    return f": by its own clock it was made {age:,.0f} s ago"
