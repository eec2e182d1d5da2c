"""Paths as layers write them → paths from the root of the image."""

from __future__ import annotations

from shiftergw.errors import LayerInvalid

PATH_LIMIT = 4095
"""Bytes of a path, and of a symlink's target, that the kernel takes (PATH_MAX, less its NUL)."""

NAME_LIMIT = 255
"""Bytes of one component (NAME_MAX); `mksquashfs` cuts a longer one without a word."""


def clean(path: bytes) -> bytes:
    """Return a path by its components from the root: no slash around it, no `.`, no `..`.

    Compares components: `foo..bar` is a fine name. Raises `LayerInvalid` for a `..` that leaves
    the root; one that stays inside takes back the component before it.
    """
    path = path.removeprefix(b"./").rstrip(b"/")
    if path and not path.startswith((b".", b"/")) and b"//" not in path and b"/." not in path:
        return path
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                raise LayerInvalid("A layer has an entry that leaves the root by `..`.")
            parts.pop()
        elif part not in {b"", b"."}:
            parts.append(part)
    return b"/".join(parts)
