"""Prefixes of image names that users know from other tools: `docker://`, `oci://`, `https://`.

Those that name a registry are left out of the name. Others name files of the user, or another kind
of service (containers-transports(5), Apptainer); the gateway reads registries alone.
"""

from __future__ import annotations

import re

from shiftergw.errors import BadRequest, printable

_REGISTRY = re.compile("(?:(?:docker|oci|https?):)?//", re.IGNORECASE)
"""`shifterimg` takes `docker:` for the type, and sends the rest of `docker://ubuntu`."""

# `docker:24` is a tag of the repository `docker`, and `docker:5000/x` has a host and its port.
_DOCKER = re.compile("docker:(?![0-9]{1,5}/)(?=[^@]*[:/])", re.IGNORECASE)

_ELSEWHERE = (
    (re.compile("(?:oci|dir):(?![0-9]{1,5}/)"), "a directory of your own"),
    (re.compile("(?:oci|docker)-archive:|tarball:|sif:|file:(?=/)"), "a file of your own"),
    (re.compile("docker-daemon:|containers-storage:|ostree:"), "images of your own machine"),
    (re.compile(r"/|\.\.?/|~"), "a file or directory of your own"),
    (re.compile("[a-z0-9.+-]*://", re.IGNORECASE), "something that is not a registry"),
)
"""What names something else, and what that is."""

_LOGIN = re.compile("[^/]*@[^/]*/")
_HUB_PAGE = re.compile("hub.docker.com/", re.IGNORECASE)


def registry_name(text: str) -> str:
    """Return a name without a prefix that says no more than that it is in a registry."""
    match = _REGISTRY.match(text)
    if match is not None:
        name = text[match.end() :]
        return name.removesuffix("/") if match[0].lower().startswith("http") else name
    match = _DOCKER.match(text)
    return text if match is None else text[match.end() :]


def check_registry_name(name: str) -> None:
    """Raise `BadRequest` for a name, without a prefix of a registry, that names something else."""
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
    for pattern, what in _ELSEWHERE:
        if pattern.match(name):
            raise BadRequest(
                f"{printable(name, 120)!r} names {what}; the gateway gets images from registries"
                " alone.",
                remedy="Push the image to a registry, for example by `skopeo copy`, and write"
                " `[location/]repository[:tag]`, with or without `docker://` in front; a repository"
                " that is really called so needs its registry's name in front.",
            )
