"""Credentials that anybody can make up: for tests and trials on the loopback only."""

from __future__ import annotations

import re
from collections.abc import Collection

from shiftergw.errors import NotAuthenticated
from shiftergw.model import RegistryLogin, Session
from shiftergw.names import HIGHEST_ID
from shiftergw.ports import UserDirectory

DEFAULT_ID = 65534
"""The uid and gid of a credential that names none: nobody's."""

_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@$-]{0,255}")
_ID = re.compile(r"[0-9]{1,10}")


class MockAuthenticator:
    """Reads `good:user:group[:token[:uid:gid]]`.

    A token that is not empty is the password of that user's `default` login.
    """

    def __init__(self, system: str, groups: UserDirectory, admins: Collection[str | int]) -> None:
        """Serve one system; `admins` are names or uids."""
        self._system = system
        self._groups = groups
        self._admins = frozenset(admins)

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session that the credential describes."""
        word, *parts = credential.split(":")
        if word != "good" or system != self._system or len(parts) not in {2, 3, 5}:
            raise NotAuthenticated(
                "The credential is not valid.",
                remedy="A mock credential is `good:user:group[:token[:uid:gid]]`.",
            )
        user, group = parts[0], parts[1]
        token = parts[2] if len(parts) > 2 else ""  # noqa: PLR2004 - the third word
        ids = parts[3:] or [str(DEFAULT_ID)] * 2
        named = _NAME.fullmatch(user) and _NAME.fullmatch(group)
        if not named or not all(_ID.fullmatch(one) and int(one) <= HIGHEST_ID for one in ids):
            raise NotAuthenticated("The credential names no user, or its ids are no ids.")
        uid, gid = int(ids[0]), int(ids[1])
        return Session(
            system=system,
            user=user,
            uid=uid,
            group=group,
            gid=gid,
            groups=await self._groups.groups(user, uid, gid),
            logins={"default": RegistryLogin(user, token)} if token else {},
            admin=not self._admins.isdisjoint({user, uid}),
        )
