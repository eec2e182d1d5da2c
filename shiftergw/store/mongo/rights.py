"""What a user may do in a database, as its server says: to try it would leave something behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shiftergw.store.mongo.queries import (
    BLOCKS,
    BREAKERS,
    CREDENTIALS,
    LEASES,
    LOOKUPS,
    STATE,
    TURNS,
)
from shiftergw.store.mongo.records import IMAGES

COMMAND = {"connectionStatus": 1, "showPrivileges": True}

_COLLECTIONS = (IMAGES, LOOKUPS, LEASES, BLOCKS, BREAKERS, TURNS, STATE, CREDENTIALS)
_ACTIONS = ("find", "insert", "update", "remove", "listIndexes", "createIndex")
_ROLES = ("readWrite", "dbOwner")
_ROLES_ANYWHERE = ("readWriteAnyDatabase", "root")


@dataclass(frozen=True, slots=True)
class Rights:
    """Whether we may do all that the gateway does; None: the server does not say.

    `lacking` names what we may not; `user` is None where nobody has to log in.
    """

    user: str | None
    enough: bool | None
    lacking: Sequence[str] = ()


def rights(answer: Mapping[str, Any], name: str) -> Rights:
    """Return what an answer to `COMMAND` says of the database `name`."""
    told = answer.get("authInfo") or {}
    users = [f"{one.get('user')}@{one.get('db')}" for one in told.get("authenticatedUsers") or ()]
    if not users:
        # Where there are users, who is none of them cannot even read.
        return Rights(None, enough=True)
    user = ", ".join(users)
    privileges = told.get("authenticatedUserPrivileges")
    if privileges:
        lacking = [
            f"{action} in {collection}"
            for collection in _COLLECTIONS
            for action in _ACTIONS
            if not any(_allows(one, name, collection, action) for one in privileges)
        ]
        return Rights(user, not lacking, lacking)
    roles = [(one.get("role"), one.get("db")) for one in told.get("authenticatedUserRoles") or ()]
    wanted = [(role, name) for role in _ROLES] + [(role, "admin") for role in _ROLES_ANYWHERE]
    return Rights(user, True if any(role in wanted for role in roles) else None)


def _allows(privilege: Mapping[str, Any], name: str, collection: str, action: str) -> bool:
    resource = privilege.get("resource") or {}
    place = resource.get("db"), resource.get("collection")
    here = place[0] in {"", name} and place[1] in {"", collection}
    return action in privilege.get("actions", ()) and bool(here or resource.get("anyResource"))
