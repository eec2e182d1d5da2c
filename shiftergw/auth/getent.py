"""Parse what `getent passwd` and `getent group` print, one after the other.

Lines have the fields of passwd(5) and of group(5); of these

    NAME:…:UID:GID:…:…:…        is a user with the gid of the primary group,
    NAME:…:GID:USER,USER,…      is a group with its members,

and the fields `…` are ignored. Of two lines with the same name or the same id the first one counts,
as on the system itself. A listing with any other line, without users, or without a line break at
its end is refused as a whole: half a listing would remove users from their groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shiftergw.errors import Unavailable
from shiftergw.model.names import HIGHEST_ID

_USER_FIELDS = 7
_GROUP_FIELDS = 4
_MAX_NAME = 256
_MAX_DIGITS = len(str(HIGHEST_ID))


@dataclass(slots=True)
class Listing:
    """Users and groups, by name and by number."""

    users: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Name and primary gid of each uid."""
    uids: dict[str, int] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)
    members: dict[str, set[int]] = field(default_factory=dict)
    """The gids of the groups that list a user, by user name."""

    def groups_of(self, user: str, gid: int) -> frozenset[int]:
        """Return all gids of a user, `gid` included; only `gid` for a user who is not listed."""
        uid = self.uids.get(user)
        if uid is None:
            return frozenset({gid})
        return frozenset({gid, self.users[uid][1], *self.members.get(user, ())})


def parse(output: bytes) -> Listing:
    """Parse the output of a command; raise `Unavailable` with the number of an invalid line."""
    listing = Listing()
    *lines, rest = output.decode("utf-8", "replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not _add_line(line.split(":"), listing):
            # The line is not quoted: on some systems it holds the hash of a password.
            raise unusable(f"its line {number} is neither of passwd(5) nor of group(5)")
    if rest:
        raise unusable("its last line is not ended: it may have been cut off")
    if not listing.users:
        raise unusable("it has no users")
    return listing


def unusable(detail: str) -> Unavailable:
    """Return the error for a listing that cannot be used."""
    return Unavailable("The listing of the system's users is of no use.", detail=detail)


def _add_line(fields: Sequence[str], listing: Listing) -> bool:
    """Add a line to a listing; return whether it is valid."""
    name = fields[0]
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
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
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        return None
    return int(text) if int(text) <= HIGHEST_ID else None
