"""Credentials without any proof: only for tests, and for trials on the loopback."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from shiftergw.errors import NotAuthenticated
from shiftergw.model.names import HIGHEST_ID
from shiftergw.model.requests import RegistryLogin, Session
from shiftergw.ports import GroupDirectory

DEFAULT_ID = 65534
"""The uid and gid of a credential without ids: those of the user nobody."""

_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@$-]{0,255}")
_ID = re.compile(r"[0-9]{1,10}")


class MockAuthenticator:
    """An `Authenticator` for credentials of the form `good:user:group[:token[:uid:gid]]`.

    A token that is not empty is the password of the user's `default` login.
    """

    def __init__(self, system: str, groups: GroupDirectory, admins: Collection[str | int]) -> None:
        """Accept credentials for one system; `admins` are names or uids."""
        self._system = system
        self._groups = groups
        self._admins = frozenset(admins)

    async def authenticate(self, credential: str, system: str) -> Session:
        """Return the session that a credential describes; raise `NotAuthenticated`."""
        word, *parts = credential.split(":")
        if word != "good" or system != self._system or len(parts) not in {2, 3, 5}:
            raise NotAuthenticated(
                "The credential is not valid.",
                remedy="A mock credential is `good:user:group[:token[:uid:gid]]`.",
            )
        user, group = parts[0], parts[1]
        token = parts[2] if len(parts) > 2 else ""  # noqa: PLR2004 - the third word
        ids = parts[3:] or [str(DEFAULT_ID)] * 2
        has_names = _NAME.fullmatch(user) and _NAME.fullmatch(group)
        has_ids = all(_ID.fullmatch(number) and int(number) <= HIGHEST_ID for number in ids)
        if not has_names or not has_ids:
            raise NotAuthenticated("The credential names no user, or its ids are no ids.")
        uid, gid = int(ids[0]), int(ids[1])
        session = await self.renew(Session(system, user, uid, group, gid))
        logins = {"default": RegistryLogin(user, token)} if token else {}
        return replace(session, logins=logins)

    async def renew(self, session: Session) -> Session:
        """Return a session with the present groups of its user, as `Authenticator` says."""
        return Session(
            system=session.system,
            user=session.user,
            uid=session.uid,
            group=session.group,
            gid=session.gid,
            groups=await self._groups.groups(session.user, session.uid, session.gid),
            admin=not self._admins.isdisjoint({session.user, session.uid}),
        )
