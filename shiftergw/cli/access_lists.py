"""The users and groups that may use a private image, as options of a command name them."""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable, Iterable

import click

from shiftergw.cli.exits import Misuse
from shiftergw.errors import printable
from shiftergw.model.names import HIGHEST_ID

_ID_LENGTH = 100
"""Characters of an id, with leading zeros; a longer number is refused."""

_QUOTE_LIMIT = 60
"""Characters of an invalid name or number that a message quotes."""

users_option = click.option(
    "--user",
    "users",
    metavar="LIST",
    multiple=True,
    help="Who may use the image if it is private: names or numbers, with commas; repeatable.",
)
groups_option = click.option(
    "--group", "groups", metavar="LIST", multiple=True, help="Which groups may; as with --user."
)


def ids_of(texts: Iterable[str], kind: str, id_of: Callable[[str], int]) -> list[str]:
    """Return the ids of comma-separated names and numbers; `kind` is "user" or "group".

    Raises `Misuse` for a name that this machine does not know, and for an id that cannot be in an
    access list. That of root is refused, too: root may read every image, and `shifterimg` silently
    drops it.
    """
    ids = []
    for item in (item.strip() for text in texts for item in text.split(",")):
        if re.fullmatch("-?[0-9]+", item):
            # Python converts no more than 4,300 digits.
            number = int(item) if len(item) <= _ID_LENGTH else HIGHEST_ID + 1
        else:
            try:
                number = id_of(item)
            except (KeyError, ValueError):
                name = printable(item, _QUOTE_LIMIT)
                raise Misuse(f"There is no {kind} {name!r} on this machine.") from None
        if number == 0:
            raise Misuse(f"The {kind} {item} cannot be given access: root has it anyway.")
        if not 0 < number <= HIGHEST_ID:
            raise Misuse(
                f"{printable(item, _QUOTE_LIMIT)} is not the number of a {kind}: 1 to {HIGHEST_ID}."
            )
        ids.append(str(number))
    return list(dict.fromkeys(ids))


def access_list(users: Iterable[str], groups: Iterable[str]) -> dict[str, str]:
    """Return the members of a request for these users and groups; raise `Misuse`."""
    lists = {
        "allowed_uids": ids_of(users, "user", lambda name: pwd.getpwnam(name).pw_uid),
        "allowed_gids": ids_of(groups, "group", lambda name: grp.getgrnam(name).gr_gid),
    }
    return {member: ",".join(ids) for member, ids in lists.items() if ids}
