"""The rights of a user in a database, as its server reports them.

They are not tried out, because that would leave documents or collections behind.
"""

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
    RANGES,
    STATE,
    THROUGHPUT,
    TURNS,
)
from shiftergw.store.mongo.records import IMAGES

COMMAND = {"connectionStatus": 1, "showPrivileges": True}

_COLLECTIONS = (
    IMAGES,
    LOOKUPS,
    LEASES,
    BLOCKS,
    BREAKERS,
    TURNS,
    STATE,
    CREDENTIALS,
    RANGES,
    THROUGHPUT,
)
_ACTIONS = ("find", "insert", "update", "remove", "listIndexes", "createIndex")
_ROLES = ("readWrite", "dbOwner")
_ROLES_ANY_DATABASE = ("readWriteAnyDatabase", "root")


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights of the user of MongoDBURI.

    `sufficient` says whether the gateway may do everything that it has to, or is None if the server
    does not report it. `missing` names the actions that are not allowed. `user` is None if the
    server requires no login.
    """

    user: str | None
    sufficient: bool | None
    missing: Sequence[str] = ()


def read_rights(answer: Mapping[str, Any], name: str) -> Rights:
    """Return the rights in the database `name` from the answer to `COMMAND`."""
    info = answer.get("authInfo") or {}
    logins = info.get("authenticatedUsers") or ()
    users = [f"{login.get('user')}@{login.get('db')}" for login in logins]
    if not users:
        # Reads have succeeded without a login, so the server has no access control.
        return Rights(None, sufficient=True)
    user = ", ".join(users)
    privileges = info.get("authenticatedUserPrivileges")
    if privileges:
        missing = [
            f"{action} in {collection}"
            for collection in _COLLECTIONS
            for action in _ACTIONS
            if not any(_allows(entry, name, collection, action) for entry in privileges)
        ]
        return Rights(user, not missing, missing)
    roles = info.get("authenticatedUserRoles") or ()
    sufficient_roles = [(role, name) for role in _ROLES]
    sufficient_roles += [(role, "admin") for role in _ROLES_ANY_DATABASE]
    is_sufficient = any((role.get("role"), role.get("db")) in sufficient_roles for role in roles)
    return Rights(user, True if is_sufficient else None)


def _allows(privilege: Mapping[str, Any], name: str, collection: str, action: str) -> bool:
    resource = privilege.get("resource") or {}
    databases, collections = {"", name}, {"", collection}  # an empty name stands for all
    is_covered = resource.get("db") in databases and resource.get("collection") in collections
    is_covered = is_covered or bool(resource.get("anyResource"))
    return action in privilege.get("actions", ()) and is_covered
