"""Selectors of images in layouts and archives: `@INDEX`, and the error that lists the choices."""

from __future__ import annotations

import re

from shiftergw.errors import ImageNotFound, printable

_LISTED_NAMES = 20
_NUMBER = re.compile("@([0-9]{1,6})")


def number_of(selector: str, count: int) -> int | None:
    """Return the number of `@INDEX` if it is that of one of `count` images, counted from 0."""
    match = _NUMBER.fullmatch(selector)
    return int(match[1]) if match is not None and int(match[1]) < count else None


CHOICE = (
    "Choose one: write its name behind the path and a colon, or `@` and its number, counted from 0."
)
"""What users of a file or directory of their own can do."""


def list_images(kind: str, selector: str, names: list[str], remedy: str = CHOICE) -> ImageNotFound:
    """Return the error for a selector that means none, or none alone, of the named images."""
    if not names:
        return ImageNotFound(f"The {kind} has no images.", remedy="Check the path.")
    text = ", ".join(printable(name, 120) for name in names[:_LISTED_NAMES])
    ellipsis = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    images = f"{len(names)} images" if len(names) > 1 else "one image"
    problem = f"no image {printable(selector, 120)!r}; it has {images}" if selector else images
    return ImageNotFound(
        f"The {kind} has {problem}: {text}{ellipsis}.",
        remedy=remedy,
    )
