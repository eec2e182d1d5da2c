"""Munge identifies the caller: the gateway's authenticator for credentials of munge(7)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from shiftergw.auth.batched import BatchedCalls
from shiftergw.auth.libmunge import LARGEST, TROUBLE, DecodeAnswer, Munge, Status, find_munge
from shiftergw.auth.munge_socket import trouble_of
from shiftergw.auth.payload import logins
from shiftergw.errors import ChildFailed, NotAuthenticated, Unavailable
from shiftergw.model.requests import Session
from shiftergw.ports import UserDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from shiftergw.plumbing.reactor import Reactor

DECODING_LIMIT = 5.0
"""Seconds until a silent daemon counts as away; a healthy daemon answers in a millisecond."""

_FORM = re.compile(r"MUNGE:[A-Za-z0-9+/]+={0,2}:")
_NO_CREDENTIAL = "(null)"
"""The credential that `shifterimg` sends when the munge daemon of its machine is away."""

_CLOCKS_DIFFER = "the clocks of the client's machine and the gateway's differ by that much."
_NOT_MUNGE = (
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
"""What is wrong with a credential, and what to do; `_NOT_MUNGE` holds for every other status."""


def used_before() -> NotAuthenticated:
    """Return the error for a credential that was used before, here or at another gateway."""
    what, remedy = _WRONG[Status.REPLAYED]
    return NotAuthenticated(what, remedy=remedy)


def digest_of(credential: str) -> bytes:
    """Return a digest that identifies a credential, for a credential that a daemon has accepted.

    Daemons ignore the surplus bits of the last characters of base64, so one credential can be
    written in several ways; their digest is the same. All of a credential's bytes are under its
    MAC.
    """
    text = credential.strip().removeprefix("MUNGE:").rstrip(":=")
    content = base64.b64decode(text + "=" * (-len(text) % 4))
    return hashlib.sha256(content).digest()


class MungeAuthenticator:
    """Identifies the users of one system through the munge daemon that has the system's key.

    The daemon refuses a credential that it has decoded before, so each is decoded only once. The
    credential holds uid and gid of its maker; names and groups come from `users`.
    """

    def __init__(
        self,
        system: str,
        socket: Path,
        users: UserDirectory,
        admins: Collection[str | int],
        reactor: Reactor,
        munge: Munge | None = None,
    ) -> None:
        """Use the daemon at `socket`; `admins` are uids, or names of `users`."""
        self._system = system
        self._socket = socket
        self._users = users
        self._admin_uids = frozenset(admin for admin in admins if isinstance(admin, int))
        self._admin_names = [admin for admin in admins if isinstance(admin, str)]
        self._munge = munge or find_munge()
        self._decoding = BatchedCalls(self._decode_in_thread, DECODING_LIMIT, reactor, self._late)

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session of the user who made the credential.

        Raises `NotAuthenticated` for an invalid credential, `BadRequest` for an invalid payload,
        and `Unavailable` while the daemon or the directory of users is away.
        """
        if system != self._system:
            raise NotAuthenticated(f"The credential is not for {system}.")
        answer = await self._decode(credential.strip())
        session = await self._session_of(answer.uid, answer.gid)
        return replace(session, logins=logins(answer.payload))

    async def renew(self, session: Session) -> Session:
        """Return a session with the present account of its user, as `Authenticator` says."""
        return await self._session_of(session.uid, session.gid)

    async def _session_of(self, uid: int, gid: int) -> Session:
        account = await self._users.account(uid, gid)
        return Session(
            system=self._system,
            user=account.user,
            uid=uid,
            group=account.group,
            gid=gid,
            groups=account.groups,
            admin=await self._is_admin(uid),
        )

    async def _decode(self, credential: str) -> DecodeAnswer:
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
            answer = await self._decoding.run(credential.encode("ascii"))
        except ChildFailed as error:
            raise self._unavailable(str(error)) from error
        if answer.status in TROUBLE:
            raise self._unavailable(answer.trouble or answer.status.name)
        if answer.status != Status.SUCCESS:
            raise self._wrong(answer.status, answer.age)
        if answer.uid < 0 or answer.gid < 0:
            raise self._unavailable(f"{self._socket}: munged gave no uid or gid for a credential.")
        return answer

    def _decode_in_thread(self, credential: bytes) -> DecodeAnswer:
        answer = self._munge.decode(credential, self._socket)
        if answer.status in TROUBLE:
            trouble = trouble_of(self._socket, answer.status)
            return replace(answer, trouble=f"{trouble.what} {trouble.remedy}")
        return answer

    async def _is_admin(self, uid: int) -> bool:
        if uid in self._admin_uids:
            return True
        return any([await self._users.uid_of(name) == uid for name in self._admin_names])

    def _wrong(self, status: Status, age: float | None = None) -> NotAuthenticated:
        what, remedy = _WRONG.get(status, _NOT_MUNGE)
        return NotAuthenticated(what.format(system=self._system, age=_age_text(age)), remedy=remedy)

    def _late(self) -> Unavailable:
        return self._unavailable(
            f"{self._socket}: munged did not answer within {DECODING_LIMIT:g} s."
        )

    def _unavailable(self, detail: str) -> Unavailable:
        return Unavailable(
            f"The gateway cannot check credentials of {self._system} at the moment.", detail=detail
        )


def _age_text(age: float | None) -> str:
    """Return the age of a credential as an error message has it."""
    if age is None:
        return ""
    if age < 0:
        return f": by its own clock it was made {-age:,.0f} s from now"
    return f": by its own clock it was made {age:,.0f} s ago"
