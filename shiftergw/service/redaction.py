"""Decide what a user may see of the pulls of other users."""

from __future__ import annotations

from dataclasses import replace

from shiftergw.model.records import ImageRecord
from shiftergw.model.requests import Session
from shiftergw.states import State


def may_see(session: Session, record: ImageRecord) -> bool:
    """Return whether this user may see work or a failure.

    Users see their own work, and pulls that use neither a login nor a private upload. The removal
    of an image is visible to its readers.
    """
    if record.requested_by == session.uid:
        return True
    if record.status is State.EXPIRING:
        return record.may_be_read_by(session)
    is_private_upload = record.upload is not None and not record.upload.public
    return (
        record.sealed is None
        and record.kind != "acl"
        and not record.own_failure
        and not is_private_upload
    )


def redact(session: Session, record: ImageRecord) -> ImageRecord:
    """Return work in flight without the parts that this user may not see.

    Hide other users, their access lists, and their progress if they use a login: it would reveal
    facts about an image that this user may not read.
    """
    if session.admin or record.requested_by == session.uid:
        return record
    if not may_see(session, record):
        return hide(record, "Waiting for another user's pull of the same name")
    return replace(
        record, user_acl=(), group_acl=(), request_id=None, requester=None, requested_by=None
    )


def hide_owner(session: Session, record: ImageRecord) -> ImageRecord:
    """Return an image without its owner if that is somebody who pulled it for everybody.

    The readers of a private image know whose it is, and names of uploads belong to their user.
    """
    is_visible = (
        session.admin
        or record.is_private
        or record.itype == "custom"
        or record.requested_by == session.uid
    )
    return record if is_visible else replace(record, requested_by=None)


def hide(record: ImageRecord, message: str) -> ImageRecord:
    """Return work in flight that shows its name and a message only."""
    return ImageRecord(
        key=record.key,
        system=record.system,
        itype=record.itype,
        pulltag=record.pulltag,
        status=State.PENDING,
        status_message=message,
        user_acl=(),
        group_acl=(),
        only_user=record.only_user,  # not part of an answer; it tells whether to note this use
    )
