"""Which platforms a system can run, and how well each suits.

Names are Go's (GOOS, GOARCH), as image-spec wants them; other common names are understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from shiftergw.errors import NoMatchingPlatform, printable
from shiftergw.image import Platform

_LISTED_PLATFORMS = 20


def architecture_named(name: str) -> str:
    """Return Go's name of an architecture, as the specification wants it."""
    known = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
    name = name.lower()
    return "arm" if name in {"armhf", "armel"} else known.get(name, name)


def implied_variant(architecture: str) -> str:
    """Return the variant that some names of an architecture carry with them."""
    return {"armhf": "v7", "armel": "v6"}.get(architecture.lower(), "")


_BASE_VARIANTS = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
"""What an absent variant means."""

_LOWEST_ARM = (5, 0)


def rank(offered: Platform, system: Platform) -> tuple[int, ...] | None:
    """Return how well `offered` suits (smaller is better), None if it cannot run there."""
    if (offered.os, offered.architecture) != ("linux", system.architecture):
        return None
    base = _BASE_VARIANTS.get(system.architecture)
    if base is None:
        # Of other architectures nothing is known about the order of their variants.
        return (0, -len(offered.variant)) if offered.variant in {"", system.variant} else None
    has, wants = _level(system.variant or base), _level(offered.variant or base)
    if not wants or wants > has or (system.architecture == "arm" and wants < _LOWEST_ARM):
        return None
    return (0, *(-number for number in wants))


def _level(variant: str) -> tuple[int, ...]:
    """Return `v8` as (8, 0) and `v8.1` as (8, 1); nothing for what is no such variant."""
    match = re.fullmatch(r"v([0-9]{1,3})(?:\.([0-9]{1,3}))?", variant)
    return (int(match[1]), int(match[2] or 0)) if match else ()


def no_match(platform: Platform, there: Iterable[Platform]) -> NoReturn:
    """Raise `NoMatchingPlatform`, naming the platforms that are there."""
    names = list(dict.fromkeys(printable(f"{one.os}/{one}", 40) for one in there))
    more = ", …" if len(names) > _LISTED_PLATFORMS else ""
    raise NoMatchingPlatform(
        f"The image has no variant for linux/{platform}; it is made for"
        f" {', '.join(names[:_LISTED_PLATFORMS])}{more}."
    )
