"""Who may read an image, and who may change its access list (ACL), as pure functions.

An ACL belongs to the files of an image, (image directory, image id). All records of these files and
the `.meta` file beside them carry the same ACL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shiftergw.model.images import ResolvedImage
from shiftergw.model.records import ImageRecord, Origin
from shiftergw.model.requests import ANONYMOUS, Session


@dataclass(frozen=True, slots=True)
class Access:
    """Who may read an image: everybody, or the users and groups of its ACL.

    A private image with an empty ACL is open to everybody. The original gateway wrote such images,
    and a site may configure them (`PrivateImagesWithoutAcl`).
    """

    private: bool
    user_acl: tuple[int, ...] = ()
    group_acl: tuple[int, ...] = ()

    @classmethod
    def from_record(cls, record: ImageRecord) -> Access:
        """Return the access that a record grants."""
        return cls(record.is_private, record.user_acl or (), record.group_acl or ())

    @property
    def is_restricted(self) -> bool:
        """Return whether the ACL excludes anybody."""
        return self.private and bool(self.user_acl or self.group_acl)


PUBLIC = Access(private=False)


def may_replace(uid: int | None, *, admin: bool, ready: ImageRecord) -> bool:
    """Return whether a user may replace, and thereby shrink, the ACL of a READY image.

    Admins and the puller of record (`requested_by`) may. Records of the original gateway have no
    puller: their ACL may be replaced by the users in it, or by anybody if it is empty. Members of a
    group in the ACL may not, because a worker does not know a user's groups.
    """
    if admin or ready.requested_by is not None:
        return admin or (ready.requested_by == uid and uid != ANONYMOUS)
    return not Access.from_record(ready).is_restricted or uid in (ready.user_acl or ())


def would_change_readers(
    session: Session, users: tuple[int, ...], groups: tuple[int, ...], ready: ImageRecord
) -> bool:
    """Return whether a pull that names `users` and `groups` changes the ACL of a READY image.

    It does not if the image is public, or if the user may only add themselves and is in the ACL
    already: otherwise a client that repeats its request would wait forever.
    """
    if not ready.is_private or not (users or groups):
        return False
    if not may_replace(session.uid, admin=session.admin, ready=ready):
        return False
    current = Access.from_record(ready)
    # A pull always adds its own user to the ACL.
    return ({*users, session.uid}, set(groups)) != (
        {*current.user_acl, session.uid},
        set(current.group_acl),
    )


def may_expire(session: Session, record: ImageRecord, tag: str) -> bool:
    """Return whether a user may expire a tag of an image: admins always, others sometimes.

    A tag of an uploaded image belongs to its owner, even if other users may use the image. Any
    other image may be expired by a user who is its only reader.
    """
    if record.itype == "custom" and record.upload is not None:
        return may_replace_tag(session, record, tag)
    is_only_reader = (
        record.is_private and record.user_acl == (session.uid,) and not record.group_acl
    )
    return session.admin or is_only_reader


def may_remove(session: Session, record: ImageRecord) -> bool:
    """Return whether a user may remove an image with all its tags: admins always, others sometimes.

    A user may if nobody else has pulled the image or looked it up, or if the user may expire each
    of its tags.
    """
    if session.admin or session.uid == ANONYMOUS:
        return session.admin
    if record.only_user == session.uid:
        return True
    return bool(record.tags) and all(may_expire(session, record, tag) for tag in record.tags)


def is_owner(session: Session, record: ImageRecord) -> bool:
    """Return whether a user is an image's puller of record, or owns one of its tags."""
    if session.uid == ANONYMOUS:
        return False
    return record.requested_by == session.uid or session.uid in (record.owners or {}).values()


def may_replace_tag(session: Session, ready: ImageRecord, tag: str) -> bool:
    """Return whether a user may give a tag of a READY image of type custom to another image."""
    owner = _owner_of_tag(ready, tag)
    return session.admin or (owner == session.uid and session.uid != ANONYMOUS)


def tag_owners(request: ImageRecord, ready: ImageRecord | None) -> dict[str, int]:
    """Return the owners of the tags of a custom image after a pull of one of them.

    `ready` is the image's record of the same system and type, if there is one: several users may
    have images of one content, which share it, and each user owns the own tags only. A tag that the
    image has already stays with its owner.
    """
    owners = {} if ready is None else {tag: _owner_of_tag(ready, tag) for tag in ready.tags}
    if request.pulltag is not None:
        owners.setdefault(request.pulltag, request.requested_by)
    return {tag: ANONYMOUS if uid is None else uid for tag, uid in owners.items()}


def _owner_of_tag(ready: ImageRecord, tag: str) -> int | None:
    """Return the owner of a tag; in records of earlier versions it is the puller of record."""
    return (ready.owners or {}).get(tag, ready.requested_by)


def is_reader(request: ImageRecord, ready: ImageRecord) -> bool:
    """Return whether the user of a pull is in the user ACL; groups are not known here."""
    return request.requested_by is not None and request.requested_by in (ready.user_acl or ())


def changes_only_readers(request: ImageRecord, ready: ImageRecord) -> bool:
    """Return whether the job only changes the ACL and its user may do so without the registry."""
    return request.kind == "acl" and (
        bool(request.by_admin)
        or (ready.requested_by is not None and ready.requested_by == request.requested_by)
    )


def may_skip_registry(request: ImageRecord, ready: ImageRecord) -> bool:
    """Return whether a READY image may be used without asking the registry for permission."""
    return not ready.is_private or is_reader(request, ready) or changes_only_readers(request, ready)


def is_origin_of(origin: Origin | None, image: ResolvedImage) -> bool:
    """Return whether `origin` is known and is the repository in which `image` was resolved."""
    return origin is not None and (origin.location, origin.repository) == (
        image.location,
        image.repository,
    )


def may_skip_download(
    request: ImageRecord, ready: ImageRecord, image: ResolvedImage, *, proven: bool
) -> bool:
    """Return whether a user who has just read the manifest may reuse the delivered image.

    A public image: always. A private image: only if it came from the repository of `image`, and
    only if the user is in its user ACL or has `proven` at the registry that they may read its
    blobs. A copy of a manifest in another repository proves nothing.
    """
    if not ready.is_private:
        return True
    return is_origin_of(ready.origin, image) and (proven or is_reader(request, ready))


def after_pull(
    request: ImageRecord,
    ready: ImageRecord | None,
    previous: ImageRecord | None,
    *,
    private: bool,
    without_acl: str,
) -> tuple[Access, int | None]:
    """Return who may read an image after a pull, and its puller of record.

    A public image stays public. The ACL of a private image is replaced if the puller of record or
    an admin names another one. Every other user who has proven access is only added to it.

    Args:
        request: the record of the pull.
        ready: the READY record of the image, if there is one.
        previous: the READY record of the image that the tag meant before. A new image takes over
            its ACL.
        private: whether the registry required a login.
        without_acl: the site's `PrivateImagesWithoutAcl`: "public" leaves a private image open
            until somebody names an ACL.

    """
    if not private or (ready is not None and not ready.is_private):
        return PUBLIC, request.requested_by if ready is None else ready.requested_by
    source = ready or (previous if previous is not None and previous.is_private else None)
    current = Access(private=True) if source is None else Access.from_record(source)
    requested_access = Access(True, request.user_acl or (), request.group_acl or ())
    replaces = requested_access.is_restricted and (
        source is None
        or may_replace(request.requested_by, admin=bool(request.by_admin), ready=source)
    )
    puller = _puller_of_record(request, source, replaces=replaces)
    if replaces:
        current = requested_access
    elif not current.is_restricted and without_acl == "public":
        return current, puller
    requester = () if request.requested_by in {None, ANONYMOUS} else (request.requested_by,)
    users = dict.fromkeys((*current.user_acl, *requester))
    return Access(True, tuple(users), tuple(dict.fromkeys(current.group_acl))), puller


def after_upload(request: ImageRecord, records: Sequence[ImageRecord]) -> tuple[Access, int | None]:
    """Return who may read an image that is made of a user's file, and its puller of record.

    The request states the access itself: nobody is a reader because an earlier image of the name
    had this reader. Owners of other tags of the image stay readers, because they have sent its
    content themselves. A user who may not replace the access list is only added to it, and never
    opens a private image. A public image of a registry stays public.

    Args:
        request: the record of the pull; its `upload` says whether the image is to be public.
        records: the records of the image's files, if they are delivered already.

    """
    assert request.upload is not None
    requester = () if request.requested_by in {None, ANONYMOUS} else (request.requested_by,)
    named_users, groups = request.user_acl or (), request.group_acl or ()
    own = _record_of_type(request, records)
    ready = own or next(iter(records), None)
    if ready is not None and not may_replace(
        request.requested_by, admin=bool(request.by_admin), ready=ready
    ):
        puller = _puller_of_record(request, ready, replaces=False)
        if not ready.is_private:
            return PUBLIC, puller
        users = dict.fromkeys((*(ready.user_acl or ()), *requester))
        return Access(True, tuple(users), ready.group_acl or ()), puller
    puller = _puller_of_record(request, ready, replaces=True)
    if request.upload.public or any(
        record.upload is None and not record.is_private for record in records
    ):
        return PUBLIC, puller
    owners = set() if own is None else _owners(own)
    users = dict.fromkeys((*named_users, *requester, *sorted(owners)))
    return Access(True, tuple(users), tuple(dict.fromkeys(groups))), puller


def would_change_upload_readers(
    session: Session, users: tuple[int, ...], groups: tuple[int, ...], ready: ImageRecord
) -> bool:
    """Return whether a pull of a file changes the access list of its READY private image.

    `after_upload` makes the list that this compares with, so that a client which repeats its
    request comes to an end.
    """
    if not ready.is_private or not may_replace(session.uid, admin=session.admin, ready=ready):
        return False
    readers, current = {*users, session.uid}, set(ready.user_acl or ())
    return (
        set(groups) != set(ready.group_acl or ())
        or not readers <= current
        or not current <= readers | _owners(ready)
    )


def _record_of_type(request: ImageRecord, records: Sequence[ImageRecord]) -> ImageRecord | None:
    """Return the READY record to which the outcome of a pull adds its tag, if there is one."""
    identity = request.system, request.itype
    return next((r for r in records if (r.system, r.itype) == identity and r.is_ready), None)


def _owners(ready: ImageRecord) -> set[int]:
    """Return the users who own a tag of an image."""
    owners = (_owner_of_tag(ready, tag) for tag in ready.tags)
    return {uid for uid in owners if uid is not None and uid != ANONYMOUS}


def _puller_of_record(
    request: ImageRecord, ready: ImageRecord | None, *, replaces: bool
) -> int | None:
    """Return who may replace the ACL of a private image after this pull.

    An ACL that the original gateway wrote has no puller of record. A user who is added to it must
    not become its owner that way, so its only user becomes the owner, or with several users nobody
    but the admins (`ANONYMOUS`).
    """
    if ready is None or (replaces and ready.requested_by is None):
        return request.requested_by
    if ready.requested_by is not None:
        return ready.requested_by
    users = ready.user_acl or ()
    if not Access.from_record(ready).is_restricted:
        return request.requested_by
    if request.requested_by in users:
        return None
    return users[0] if len(users) == 1 else ANONYMOUS
