"""Read the names of images in the requests of sessions, and make the errors about them."""

from __future__ import annotations

from shiftergw.errors import BadRequest, NotFound, printable
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import IMAGE_TYPES, PullRequest, Session


def pull_request(
    session: Session,
    itype: str,
    text: str,
    request_id: str,
    user_acl: tuple[int, ...] = (),
    group_acl: tuple[int, ...] = (),
) -> PullRequest:
    """Return the request of a session for an image; raise `BadRequest` for an invalid name."""
    check_image_type(itype)
    return PullRequest(
        system=session.system,
        itype=itype,
        reference=ImageReference.parse(text),
        requested_by=session.uid,
        request_id=request_id,
        requester=printable(session.user, 60),
        by_admin=session.admin,
        user_acl=user_acl,
        group_acl=group_acl,
    )


def missing_image(session: Session, itype: str, text: str) -> NotFound:
    """Return the error for an image that does not exist, or that the user may not read."""
    name = printable(text)
    remedy = "Pull it first, or check its name in the list of images."
    if itype == "custom":
        name = f"custom:{name}"
    elif "/" not in text:
        remedy += f" An image that was uploaded is called custom:{name}."
    return NotFound(f"There is no image {name} on {session.system}.", remedy=remedy)


def check_image_type(itype: str) -> None:
    """Raise `BadRequest` unless a client may name images of this type."""
    if itype not in IMAGE_TYPES:
        raise BadRequest(
            f"{printable(itype, 40)!r} is not an image type.",
            remedy=f"Image types are {' and '.join(sorted(IMAGE_TYPES))}.",
        )


def stored_names(text: str) -> list[str]:
    """Return the tags under which an image may be stored: the canonical one, then `text` itself."""
    try:
        return ImageReference.stored_tags(text)
    except BadRequest:
        return [text]
