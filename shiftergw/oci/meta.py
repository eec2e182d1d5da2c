"""The `.meta` file beside each squashfs: a writer that cannot be tricked, and the reader's rules.

The reader is the existing C runtime's; `read_meta` models it, faults included, and proves the
writer: `KEY: VALUE` lines, a value ending in a backslash swallows the next line, the last of two
lines of one key wins, a list is `['a', 'b']` without any escapes. What cannot be said that way is
left out and named, never bent; the ACL stands last, so that no value before it can replace it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from shiftergw.errors import PullError, printable
from shiftergw.names import ACL_LIMIT, HIGHEST_ID

_BLANKS = " \t\v\f\r\n"
_FORBIDDEN = re.compile("[\r\n\0\ud800-\udfff]")
_LIST_STARTS = ("['", "[u'")


class AclTooLong(PullError):
    """More readers than the runtime can read."""

    code = "acl-too-long"
    default_remedy = "Share the image with a group instead of with single users."


@dataclass(frozen=True, slots=True)
class MetaFile:
    """A finished file, and the names of the values that it could not say."""

    content: bytes
    dropped: tuple[str, ...] = ()


@dataclass(slots=True)
class Meta:
    """What the runtime understands of a file. `None`: no such line."""

    format: str = "VFS"
    entry: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    workdir: str | None = None
    env: tuple[str, ...] = ()
    user_acl: tuple[int, ...] | None = None
    group_acl: tuple[int, ...] | None = None
    warnings: list[str] = field(default_factory=list)


def write_meta(
    *,
    env: Sequence[str] = (),
    entry: Sequence[str] = (),
    cmd: Sequence[str] = (),
    workdir: str = "",
    private: bool = False,
    user_acl: Sequence[int] = (),
    group_acl: Sequence[int] = (),
) -> MetaFile:
    """Return the file of an image; the ACL lines only if it is private.

    Raises `AclTooLong`. A private image without any reader is a fault of the caller (`ValueError`):
    the runtime would let everybody in.
    """
    if private and not user_acl and not group_acl:
        raise ValueError("a private image has at least one reader")
    settings = runtime_settings(env=env, entry=entry, cmd=cmd, workdir=workdir)
    lines = ["FORMAT: squashfs"]
    for key, words in (("ENTRY", settings.entry), ("CMD", settings.cmd)):
        if words:
            lines.append(f"{key}: {_list_text(words)}")
    if settings.workdir:
        lines.append(f"WORKDIR: {settings.workdir}")
    lines += [f"ENV: {variable}" for variable in settings.env]
    if private:
        lines.append(f"USERACL: {_ids(user_acl)}")
        lines.append(f"GROUPACL: {_ids(group_acl)}")
    return MetaFile("".join(f"{line}\n" for line in lines).encode(), settings.dropped)


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """The settings of an image that a `.meta` file can hold, and the names of the others."""

    env: tuple[str, ...]
    entry: tuple[str, ...]
    cmd: tuple[str, ...]
    workdir: str
    dropped: tuple[str, ...]


def runtime_settings(
    *, env: Sequence[str], entry: Sequence[str], cmd: Sequence[str], workdir: str
) -> RuntimeSettings:
    """Return the values that fit unchanged into a line of the `.meta` file."""
    dropped: list[str] = []
    lists: dict[str, tuple[str, ...]] = {}
    for key, words in (("ENTRY", entry), ("CMD", cmd)):
        text = _list_text(words) if words else ""
        is_plain = text is not None and _is_plain(text)
        lists[key] = tuple(words) if is_plain else ()
        if not is_plain:
            dropped.append(key)
    if not _is_plain(workdir):
        dropped.append("WORKDIR")
        workdir = ""
    variables = []
    for variable in env:
        # The runtime drops blanks at the end; a variable without them is better than none.
        value = variable.rstrip(_BLANKS)
        is_plain = _is_plain(value)
        if is_plain:
            variables.append(value)
        if not is_plain or value != variable:
            name = printable(variable.partition("=")[0], 60)
            dropped.append(f"ENV {name} (blanks at its end)" if is_plain else f"ENV {name}")
    return RuntimeSettings(tuple(variables), lists["ENTRY"], lists["CMD"], workdir, tuple(dropped))


def _is_plain(value: str) -> bool:
    """Say whether the runtime reads this value as it stands."""
    return (
        value == value.strip(_BLANKS)
        and not value.endswith("\\")
        and _FORBIDDEN.search(value) is None
    )


def _list_text(words: Sequence[str]) -> str | None:
    """Return a list as the runtime reads it, or None if it cannot be said."""
    if any("'" in word for word in words):
        # One word may stand bare: the runtime takes any text that is no list for one argument.
        alone = words[0] if len(words) == 1 else None
        return None if alone is None or alone.startswith(_LIST_STARTS) else alone
    return "[" + ", ".join(f"'{word}'" for word in words) + "]"


def _ids(ids: Sequence[int]) -> str:
    if len(ids) > ACL_LIMIT:
        raise AclTooLong(f"The image has {len(ids)} readers; the runtime reads {ACL_LIMIT}.")
    if any(not 0 <= one <= HIGHEST_ID for one in ids):
        raise ValueError(f"an id is between 0 and {HIGHEST_ID}")
    return ",".join(str(one) for one in ids)


class Unusable(Exception):
    """The runtime refuses the file, and with it the image."""


def read_meta(content: bytes) -> Meta:
    """Read a file as the runtime does; raise `Unusable` where it gives up."""
    meta = Meta()
    env: list[str] = []
    for key, value in _lines(content.decode("utf-8", "surrogateescape")):
        if key == "FORMAT":
            known = value in {"squashfs", "ext4", "cramfs", "xfs", "VFS"}
            meta.format = value if known else "INVALID"
        elif key == "ENTRY":
            meta.entry = _words(value)
        elif key == "CMD":
            meta.cmd = _words(value)
        elif key == "WORKDIR":
            meta.workdir = value
        elif key == "ENV":
            env.append(value)
        elif key == "USERACL":
            meta.user_acl = _read_ids(value)
        elif key == "GROUPACL":
            meta.group_acl = _read_ids(value)
        elif key != "VOLUME":
            meta.warnings.append(key)
    meta.env = tuple(env)
    return meta


def _lines(text: str) -> list[tuple[str, str]]:
    """Return keys and values: lines joined after a backslash, comments and other lines skipped."""
    pairs: list[tuple[str, str]] = []
    waiting: tuple[str, str] | None = None
    for line in text.removesuffix("\n").split("\n"):
        if waiting is not None:
            key, value = waiting[0], f"{waiting[1]} {line.strip(_BLANKS)}"
            waiting = None
        elif line.startswith("#") or ":" not in line:
            continue
        else:
            key, _, value = (part.strip(_BLANKS) for part in line.partition(":"))
        value = value.partition("\0")[0].strip(_BLANKS)
        if value.endswith("\\"):
            waiting = key, value[:-1].strip(_BLANKS)
        else:
            pairs.append((key, value))
    if waiting is not None:
        pairs.append((waiting[0], f"{waiting[1]} {waiting[0]}"))
    return pairs


def _words(value: str) -> tuple[str, ...]:
    if not value.startswith(_LIST_STARTS):
        return (value,)
    parts = value.split("'")
    if not value.endswith("]") or len(parts) % 2 == 0:
        raise Unusable("Malformed JSON")
    return tuple(parts[1::2])


def _read_ids(value: str) -> tuple[int, ...]:
    items = [item.strip(_BLANKS) for item in value.split(",")]
    ids = tuple(int(item) % 2**32 for item in items if re.fullmatch(r"-?[0-9]+", item))
    if len(ids) > ACL_LIMIT or (value and not ids):
        raise Unusable("the runtime aborts on this list of ids")
    return ids
