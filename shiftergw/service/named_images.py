"""Find images by what users write: a name, or the first digits of an image id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shiftergw.errors import AmbiguousId, BadRequest, NotFound, printable
from shiftergw.model.names import ID_TYPE, SHORTEST_PREFIX, is_id_prefix
from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.ports import ImageStore
from shiftergw.service.image_requests import check_image_type, missing_image, stored_names

MOST_MATCHES = 50
"""Records that are read for the first digits of an id."""

MOST_CANDIDATES = 8
"""Images that an error about an ambiguous id lists."""

MOST_TAGS = 3
"""Tags that an error names of each image."""

_DIGITS = 12
"""Digits of an id in an error, as in the table of images."""


async def find_image(
    store: ImageStore, session: Session, itype: str, text: str, *, admins_see_all: bool = False
) -> ImageRecord:
    """Return the READY image of a name, or with the type `id` of the first digits of its id.

    Raises `NotFound` also for an image that this user may not read, and `AmbiguousId`, which lists
    only images that the user may read. With `admins_see_all` admins get every image.
    """
    sees_all = admins_see_all and session.admin
    if itype == ID_TYPE:
        records = await store.find_prefix([session.system], _prefix(text), MOST_MATCHES)
        return _newest(
            [record for record in records if sees_all or record.may_be_read_by(session)],
            text,
            f"on {session.system}",
        )
    check_image_type(itype)
    record = await store.find(session.system, itype, stored_names(text))
    if record is None or not (sees_all or record.may_be_read_by(session)):
        raise missing_image(session, itype, text)
    return record


def tag_of(record: ImageRecord, itype: str, text: str) -> str:
    """Return the tag of an image that a user has named; by its id that is its only tag."""
    if itype != ID_TYPE:
        return next(name for name in stored_names(text) if name in record.tags)
    if len(record.tags) == 1:
        return record.tags[0]
    raise BadRequest(
        f"The image {_description(record)} has {len(record.tags)} tags, so its id stands for none.",
        remedy="Name the tag, or remove the whole image with `shiftergw rm`.",
    )


async def find_any_id(store: ImageStore, systems: Sequence[str], text: str) -> str:
    """Return the image id on these systems that begins with some digits, for an admin.

    A whole id is returned as it is, because there may be no image of it yet.
    """
    if is_whole_id(text):
        return text
    records = await store.find_prefix(systems, _prefix(text), MOST_MATCHES)
    return _newest(records, text, "there").id or ""


async def find_blocked_id(store: ImageStore, directory: str, text: str) -> str:
    """Return the blocked image id in an image directory that begins with some digits."""
    ids = await store.find_blocks(directory, _prefix(text), MOST_CANDIDATES + 1)
    if not ids:
        raise NotFound("This image is not blocked.", remedy="Check the digits of its id.")
    _check_single(text, {image_id: f"{image_id:.{_DIGITS}}" for image_id in ids})
    return ids[0]


def is_whole_id(text: str) -> bool:
    """Return whether a text has all digits of an image id."""
    return len(text) == 64 and is_id_prefix(text)  # noqa: PLR2004 - of a SHA-256


def _prefix(text: str) -> str:
    """Return a text that can be the beginning of an id; raise `BadRequest` for another one."""
    if not is_id_prefix(text):
        raise BadRequest(
            f"{printable(text, 80)!r} is not the beginning of an image id.",
            remedy=f"Write {SHORTEST_PREFIX} to 64 hexadecimal digits in lower case.",
        )
    return text


def _newest(records: Sequence[ImageRecord], text: str, place: str) -> ImageRecord:
    """Return the newest record of the only image in `records`."""
    if not records:
        raise NotFound(
            f"There is no image {place} whose id begins with {text:.64}.",
            remedy="`shiftergw images` lists the ids.",
        )
    _check_single(text, {record.id or "": _description(record) for record in records})
    return max(records, key=lambda record: (record.last_pull or 0, record.key))


def _check_single(text: str, images: Mapping[str, str]) -> None:
    """Raise `AmbiguousId` if there are several images; the values describe them."""
    if len(images) > 1:
        words = "; ".join(list(images.values())[:MOST_CANDIDATES])
        rest = len(images) - MOST_CANDIDATES
        end = f"; and {rest} more" if rest > 0 else ""
        raise AmbiguousId(f"Several images have an id that begins with {text:.64}: {words}{end}.")


def _description(record: ImageRecord) -> str:
    """Return the first digits of an image's id, and its tags."""
    prefix = "" if record.itype == "docker" else f"{record.itype}:"
    names = [f"{prefix}{printable(tag, 120)}" for tag in record.tags[:MOST_TAGS]]
    names += ["…"] if len(record.tags) > MOST_TAGS else []
    return f"{record.id or '':.{_DIGITS}} ({', '.join(names) or 'without a tag'})"
