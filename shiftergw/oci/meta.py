"""Write and read the `.meta` file that accompanies each squashfs.

The reader of these files is the existing C runtime. `read_meta` models it, including its faults:
lines are `KEY: VALUE`, a value that ends in a backslash absorbs the next line, of two lines with
one key the last one counts, and a list is `['a', 'b']` without escapes. The writer drops values
that this format cannot represent, reports their names, and never changes a value. The ACL comes
last, so that no value before it can replace it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from shiftergw.errors import PullError, printable
from shiftergw.model.names import ACL_LIMIT, HIGHEST_ID

_BLANKS = " \t\v\f\r\n"
_UNREPRESENTABLE = re.compile("[\r\n\0\ud800-\udfff]")
_LIST_STARTS = ("['", "[u'")


class AclTooLong(PullError):
    """The access list has more ids than the runtime can read."""

    code = "acl-too-long"
    default_remedy = "Share the image with a group instead of with single users."


@dataclass(frozen=True, slots=True)
class MetaFile:
    """The content of a `.meta` file, and the names of the settings that it cannot represent."""

    content: bytes
    omissions: tuple[str, ...] = ()


@dataclass(slots=True)
class Meta:
    """The values that the runtime reads from a file; `None` if there is no such line."""

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
    """Return the file of an image; it has ACL lines only if the image is private.

    Raises `AclTooLong`, and `ValueError` for a private image without readers: the runtime would
    admit everybody.
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
    return MetaFile("".join(f"{line}\n" for line in lines).encode(), settings.omissions)


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """The settings of an image that a `.meta` file can represent, and the names of the rest."""

    env: tuple[str, ...]
    entry: tuple[str, ...]
    cmd: tuple[str, ...]
    workdir: str
    omissions: tuple[str, ...]


def runtime_settings(
    *, env: Sequence[str], entry: Sequence[str], cmd: Sequence[str], workdir: str
) -> RuntimeSettings:
    """Return the settings that a line of a `.meta` file can represent without a change."""
    omissions: list[str] = []
    lists: dict[str, tuple[str, ...]] = {}
    for key, words in (("ENTRY", entry), ("CMD", cmd)):
        text = _list_text(words) if words else ""
        is_plain = text is not None and _is_plain(text)
        lists[key] = tuple(words) if is_plain else ()
        if not is_plain:
            omissions.append(key)
    if not _is_plain(workdir):
        omissions.append("WORKDIR")
        workdir = ""
    variables = []
    for variable in env:
        # The runtime removes blanks at the end. A variable without them is better than no variable.
        value = variable.rstrip(_BLANKS)
        is_plain = _is_plain(value)
        if is_plain:
            variables.append(value)
        if not is_plain or value != variable:
            name = printable(variable.partition("=")[0], 60)
            omissions.append(f"ENV {name} (blanks at its end)" if is_plain else f"ENV {name}")
    return RuntimeSettings(
        tuple(variables), lists["ENTRY"], lists["CMD"], workdir, tuple(omissions)
    )


def _is_plain(value: str) -> bool:
    """Return whether the runtime reads this value unchanged."""
    return (
        value == value.strip(_BLANKS)
        and not value.endswith("\\")
        and _UNREPRESENTABLE.search(value) is None
    )


def _list_text(words: Sequence[str]) -> str | None:
    """Return a list in the format of the runtime, or None if it cannot be represented."""
    if any("'" in word for word in words):
        # The runtime reads any text that is not a list as a single argument.
        single = words[0] if len(words) == 1 else None
        return None if single is None or single.startswith(_LIST_STARTS) else single
    return "[" + ", ".join(f"'{word}'" for word in words) + "]"


def _ids(ids: Sequence[int]) -> str:
    if len(ids) > ACL_LIMIT:
        raise AclTooLong(f"The image has {len(ids)} readers; the runtime reads {ACL_LIMIT}.")
    if any(not 0 <= number <= HIGHEST_ID for number in ids):
        raise ValueError(f"an id is between 0 and {HIGHEST_ID}")
    return ",".join(map(str, ids))


class MetaRejected(Exception):
    """The runtime rejects the file, and with it the image."""


def read_meta(content: bytes) -> Meta:
    """Parse a file as the runtime does; raise `MetaRejected` if the runtime rejects it."""
    meta = Meta()
    env: list[str] = []
    for key, value in _lines(content.decode("utf-8", "surrogateescape")):
        if key == "FORMAT":
            is_supported = value in {"squashfs", "ext4", "cramfs", "xfs", "VFS"}
            meta.format = value if is_supported else "INVALID"
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
    """Return keys and values. Joins lines after a backslash; skips comments and other lines."""
    pairs: list[tuple[str, str]] = []
    partial: tuple[str, str] | None = None
    for line in text.removesuffix("\n").split("\n"):
        if partial is not None:
            key, value = partial[0], f"{partial[1]} {line.strip(_BLANKS)}"
            partial = None
        elif line.startswith("#") or ":" not in line:
            continue
        else:
            key, _, value = (part.strip(_BLANKS) for part in line.partition(":"))
        value = value.partition("\0")[0].strip(_BLANKS)
        if value.endswith("\\"):
            partial = key, value[:-1].strip(_BLANKS)
        else:
            pairs.append((key, value))
    if partial is not None:
        pairs.append((partial[0], f"{partial[1]} {partial[0]}"))
    return pairs


def _words(value: str) -> tuple[str, ...]:
    if not value.startswith(_LIST_STARTS):
        return (value,)
    parts = value.split("'")
    if not value.endswith("]") or len(parts) % 2 == 0:
        raise MetaRejected("Malformed JSON")
    return tuple(parts[1::2])


def _read_ids(value: str) -> tuple[int, ...]:
    items = [item.strip(_BLANKS) for item in value.split(",")]
    ids = tuple(int(item) % 2**32 for item in items if re.fullmatch(r"-?[0-9]+", item))
    if len(ids) > ACL_LIMIT or (value and not ids):
        raise MetaRejected("the runtime aborts on this list of ids")
    return ids
