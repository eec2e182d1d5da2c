"""Names, ids and numbers that the command line, the gateway and its workers must agree on.

Users know prefixes of image names from other tools: `docker://`, `oci://`, `https://`. A prefix
that stands for a registry is removed from the name. Other prefixes stand for the user's own files,
or for another kind of service (containers-transports(5), Apptainer); the gateway reads registries
only.

This module imports little, because the command line needs it before anything else.
"""

from __future__ import annotations

import re
from typing import TypeGuard

from shiftergw.errors import BadRequest, printable

DOCKER_HUB = "registry-1.docker.io"
"""The host that serves Docker Hub's registry."""

DOCKER_IO = "docker.io"
"""The name of Docker Hub in references."""

DOCKER_HUB_ALIASES = frozenset({DOCKER_IO, "index.docker.io"})
"""The hosts that users write for Docker Hub, whose registry is another host."""

DOCKER_HUB_HOSTS = (DOCKER_HUB, *sorted(DOCKER_HUB_ALIASES))
"""All hosts that mean Docker Hub; its registry is the first."""

HIGHEST_ID = 2**32 - 2
"""The highest uid or gid: to the kernel, 2**32 - 1 means "no user" or "no group"."""

ACL_LIMIT = 1000
"""Ids in one access list; the runtime aborts if its `.meta` file has more."""

MISSING = "MISSING"
"""What the HTTP interface writes for a member that a record lacks."""

LARGEST_COUNT = 2**63 - 1
"""The largest size, offset or number of things in an answer of the gateway."""

LATEST = 253_402_214_400
"""The last day of the year 9999, in seconds since 1970: every later time is an error."""

ID_TYPE = "id"
"""The type of an image that is named by the first digits of its id."""

SHORTEST_PREFIX = 4
"""The least digits of an image id that name the image."""

_IMAGE_ID = re.compile("[0-9a-f]{64}")
_ID_PREFIX = re.compile(f"[0-9a-f]{{{SHORTEST_PREFIX},64}}")

_REGISTRY = re.compile("(?:(?:docker|oci|https?):)?//", re.IGNORECASE)
"""`shifterimg` takes `docker:` for the type, and sends the rest of `docker://ubuntu`."""

# `docker:24` is a tag of the repository `docker`, and `docker:5000/x` has a host and its port.
_DOCKER = re.compile("docker:(?![0-9]{1,5}/)(?=[^@]*[:/])", re.IGNORECASE)

_TARGETS = (
    (re.compile("(?:oci|dir):(?![0-9]{1,5}/)"), "a directory of your own"),
    (re.compile("(?:sif|squashfs):(?![0-9]{1,5}/)"), "a file of your own"),
    (re.compile("(?:oci|docker)-archive:|tarball:|file:(?=/)"), "a file of your own"),
    (re.compile("docker-daemon:|containers-storage:|ostree:"), "images of your own machine"),
    (re.compile(r"/|\.\.?/|~"), "a file or directory of your own"),
    (re.compile("[a-z0-9.+-]*://", re.IGNORECASE), "something that is not a registry"),
)
"""Patterns of names that are not in a registry, each with what such a name stands for."""

_DEFAULT_TAG = re.compile("[a-z-]+:latest")
"""How the store writes a repository that the user wrote without a tag, such as `oci`."""

_LOGIN = re.compile("[^/]*@[^/]*/")
_HUB_PAGE = re.compile("hub.docker.com/", re.IGNORECASE)


def is_image_id(value: object) -> bool:
    """Return whether a value is an image id: the 64 hexadecimal digits of a SHA-256 digest."""
    return isinstance(value, str) and _IMAGE_ID.fullmatch(value) is not None


def is_id_prefix(text: str) -> bool:
    """Return whether a text is an image id, or enough of its first digits to name the image."""
    return _ID_PREFIX.fullmatch(text) is not None


def is_count(value: object) -> TypeGuard[int]:
    """Return whether a value is a size, an offset, a number of things, or a uid."""
    return type(value) is int and 0 <= value <= LARGEST_COUNT  # `True` is an `int`, too


def is_time(value: object) -> TypeGuard[float]:
    """Return whether a value is a time in seconds since 1970, or a duration in seconds.

    Only such a number can be printed as a date: `time.localtime` raises errors for others.
    """
    return type(value) in {int, float} and 0 <= value <= LATEST  # type: ignore[operator]  # a number


def registry_name(text: str) -> str:
    """Remove a prefix that only says that the image is in a registry."""
    match = _REGISTRY.match(text)
    if match is not None:
        name = text[match.end() :]
        return name.removesuffix("/") if match[0].lower().startswith("http") else name
    match = _DOCKER.match(text)
    return text if match is None else text[match.end() :]


def is_host(component: str) -> bool:
    """Return whether the first component of a name, before its first slash, is a registry's host.

    Docker's rule: a host has a dot, a port, an upper-case letter or brackets, or is `localhost`.
    Everything else is a part of the repository.
    """
    return (
        "." in component
        or ":" in component
        or component == "localhost"
        or component != component.lower()
    )


def check_registry_name(name: str) -> None:
    """Raise `BadRequest` if a name, without its prefix, cannot stand for a repository."""
    if _LOGIN.match(name):
        raise BadRequest(
            "The name of an image has no login in it.",
            remedy="Leave it out; `shiftergw login` keeps logins for registries.",
        )
    if _HUB_PAGE.match(name):
        raise BadRequest(
            "hub.docker.com has the pages of Docker Hub, not its images.",
            remedy="Write the name that stands on the page behind `docker pull`, such as"
            " `ubuntu:24.04`.",
        )
    if _DEFAULT_TAG.fullmatch(name):
        return
    for pattern, target in _TARGETS:
        if pattern.match(name):
            raise BadRequest(
                f"{printable(name, 120)!r} names {target}; the gateway gets images from registries"
                " alone.",
                remedy="Push the image to a registry, for example by `skopeo copy`, and write"
                " `[location/]repository[:tag]`, with or without `docker://` in front; a repository"
                " that is really called so needs its registry's name in front.",
            )
