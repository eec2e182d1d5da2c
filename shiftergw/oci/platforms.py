"""Rank the platforms that a system can run.

Names are Go's (GOOS, GOARCH), as image-spec requires; other common names are translated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from shiftergw.errors import NoMatchingPlatform, printable
from shiftergw.model.images import Platform

_LISTED_PLATFORMS = 20


def go_architecture(name: str) -> str:
    """Return Go's name of an architecture, which image-spec requires."""
    go_names = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}
    name = name.lower()
    return "arm" if name in {"armhf", "armel"} else go_names.get(name, name)


def implied_variant(architecture: str) -> str:
    """Return the variant that a name of an architecture implies, or an empty string."""
    return {"armhf": "v7", "armel": "v6"}.get(architecture.lower(), "")


_BASE_VARIANTS = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
"""The variant that a missing variant means."""

_LOWEST_ARM = (5, 0)


def rank(image: Platform, system: Platform) -> tuple[int, ...] | None:
    """Return the rank of an image's platform on a system; None if the system cannot run it.

    Smaller ranks are better.
    """
    if (image.os, image.architecture) != ("linux", system.architecture):
        return None
    base = _BASE_VARIANTS.get(system.architecture)
    if base is None:
        # The order of the variants of other architectures is unknown.
        return (0, -len(image.variant)) if image.variant in {"", system.variant} else None
    provides, needs = _level(system.variant or base), _level(image.variant or base)
    if not needs or needs > provides or (system.architecture == "arm" and needs < _LOWEST_ARM):
        return None
    return (0, *(-number for number in needs))


def _level(variant: str) -> tuple[int, ...]:
    """Return `v8` as (8, 0) and `v8.1` as (8, 1), and an invalid variant as ()."""
    match = re.fullmatch(r"v([0-9]{1,3})(?:\.([0-9]{1,3}))?", variant)
    return (int(match[1]), int(match[2] or 0)) if match else ()


def no_match(system: Platform, offers: Iterable[Platform]) -> NoReturn:
    """Raise `NoMatchingPlatform` with the platforms that the image offers."""
    names = list(dict.fromkeys(printable(f"{offer.os}/{offer}", 40) for offer in offers))
    ellipsis = ", …" if len(names) > _LISTED_PLATFORMS else ""
    raise NoMatchingPlatform(
        f"The image has no variant for linux/{system}; it is made for"
        f" {', '.join(names[:_LISTED_PLATFORMS])}{ellipsis}."
    )
