"""The names of files in an image directory: installed files, and temporaries of unfinished writes.

An image or its metadata is `<64 hex digits>.squashfs` or `.meta`. The temporary of such a file is
its name, `.partial.` and 16 hex digits.
"""

from __future__ import annotations

import re
import secrets

_INSTALLED_NAME = re.compile(r"[0-9a-f]{64}\.(?:squashfs|meta)")
_TEMPORARY_NAME = re.compile(r"([0-9a-f]{64}\.(?:squashfs|meta))\.partial\.[0-9a-f]{16}")


def is_installed_name(name: str) -> bool:
    """Return whether this is the name of an image or of its metadata."""
    return _INSTALLED_NAME.fullmatch(name) is not None


def check_installed_name(name: str) -> None:
    """Raise `ValueError` unless this is the name of an image or of its metadata."""
    if not is_installed_name(name):
        raise ValueError(f"{name!r} cannot be the name of an image or of its metadata")


def temporary_name(name: str, key: str = "") -> str:
    """Return the name of a temporary for this file; its 16 digits are `key` or random."""
    return f"{name}.partial.{key or secrets.token_hex(8)}"


def probe_name() -> str:
    """Return the name of a file that a probe writes.

    It is that of a temporary, so that a sweep removes a file that a broken probe left behind.
    """
    return temporary_name(f"{'0' * 64}.meta")


def name_of_temporary(name: str) -> str | None:
    """Return the installed name that belongs to a temporary; None if `name` is no temporary."""
    match = _TEMPORARY_NAME.fullmatch(name)
    return None if match is None else match[1]
