"""Translate the image names of enroot, which pyxis passes on, into those of the gateway.

enroot's form is `docker://[USER@][REGISTRY#]IMAGE[:TAG][@DIGEST]`, and since version 4 also
`docker://[USER@]REGISTRY/IMAGE…` (enroot, `src/docker.sh`). The text is what a user has written
behind `--container-image`, so anything may be in it.
"""

from __future__ import annotations

import re

from shiftergw.cli.exits import Misuse
from shiftergw.cli.settings import check_text
from shiftergw.errors import BadRequest, printable
from shiftergw.model.names import is_host
from shiftergw.model.references import ImageReference

LONGEST = 1024
"""Characters of a name, with the user in it."""

_PREFIX = "docker://"
_DAEMONS = ("dockerd://", "podman://")
_CUSTOM = "custom:"
_DIGEST = re.compile("@[a-z0-9]+:[0-9a-fA-F]+")
_USER = re.compile(r"[!-~]+")
_FORM = "write [USER@][REGISTRY#]IMAGE[:TAG][@DIGEST], for example ghcr.io#org/app:1"


def image_of_uri(uri: str) -> tuple[str, str]:
    """Return type and name of the image that a URI of enroot names.

    The user in a URI chooses nothing: the gateway uses the login that its user keeps for the
    registry. `custom:NAME[:TAG]` is an upload of the user. Raises `Misuse` for any other text.
    """
    check_text(uri, "The name of the image")
    if uri.startswith(_DAEMONS):
        raise Misuse(
            f"{printable(uri, 200)}: the gateway gets images from registries, not from a daemon of"
            " this machine. Push the image to a registry, or upload it by `shiftergw pull`."
        )
    if len(uri) > LONGEST or not uri.startswith(_PREFIX):
        raise _invalid(uri)
    name = uri.removeprefix(_PREFIX)
    digest = _DIGEST.search(name, pos=name.rfind("@")) if "@" in name else None
    suffix = digest[0] if digest is not None and digest.end() == len(name) else ""
    name = name.removesuffix(suffix)
    user, sign, image = name.rpartition("@")
    if sign and not _USER.fullmatch(user):
        raise _invalid(uri)
    if image.startswith(_CUSTOM):
        return "custom", str(_reference(uri, image.removeprefix(_CUSTOM) + suffix))
    registry, sign, repository = image.rpartition("#")
    if sign:
        if not is_host(registry):
            raise Misuse(
                f"{printable(uri, 200)}: {printable(registry, 100)!r} is not the host of a"
                " registry. Write its full name; a name that the gateway has given to a registry"
                " stands before a slash, as in lab/app:1."
            )
        image = f"{registry}/{repository}"
    return "docker", str(_reference(uri, image + suffix))


def _reference(uri: str, text: str) -> ImageReference:
    """Return the reference of an image; raise `Misuse` if the text is not one."""
    if "//" in text:  # the parser takes a prefix off, and here there is none
        raise _invalid(uri)
    try:
        return ImageReference.parse(text)
    except BadRequest as error:
        raise _invalid(uri) from error


def _invalid(uri: str) -> Misuse:
    return Misuse(f"{printable(uri, 200)} is not the name of an image: {_FORM}.")
