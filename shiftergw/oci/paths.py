"""Normalize the paths of layers to paths from the root of the image."""

from __future__ import annotations

from shiftergw.errors import LayerInvalid

PATH_LIMIT = 4095
"""Most bytes of a path, and of a symlink's target, for the kernel (PATH_MAX without the NUL)."""

NAME_LIMIT = 255
"""Most bytes of one component (NAME_MAX); `mksquashfs` silently truncates longer ones."""


def clean(path: bytes) -> bytes:
    """Return a path from the root without outer slashes and without `.` and `..` components.

    A `..` removes the component before it; `foo..bar` is an ordinary name. Raises `LayerInvalid`
    for a `..` that leaves the root.
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
