"""Who may read an image, and who may change that: the rules, as functions of what is known.

An image's ACL belongs to its files, (image directory, id): every record of them says the same, and
so does the `.meta` beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from shiftergw.image import ResolvedImage
from shiftergw.model import ANONYMOUS, ImageRecord, Origin, Session


@dataclass(frozen=True, slots=True)
class Access:
    """Who may read an image: everybody, or the users and groups that are named.

    A private image that names nobody is open: so the original had it, and so a site may have it.
    """

    private: bool
    user_acl: tuple[int, ...] = ()
    group_acl: tuple[int, ...] = ()

    @property
    def restricted(self) -> bool:
        """Say whether anybody is kept out."""
        return self.private and bool(self.user_acl or self.group_acl)


PUBLIC = Access(private=False)


def of(record: ImageRecord) -> Access:
    """Return what a record says."""
    return Access(record.is_private, record.user_acl or (), record.group_acl or ())


def may_replace(uid: int | None, *, admin: bool, held: ImageRecord) -> bool:
    """Return whether a user may replace the ACL of an image that is there, and shrink it.

    The puller of record and admins may. A record of the original has no puller: there, those may
    who are on its list, and anybody if it has none. Members of a group that is on the list are not
    counted: a worker does not know the groups of a user.
    """
    if admin or held.requested_by is not None:
        return admin or (held.requested_by == uid and uid != ANONYMOUS)
    return not of(held).restricted or uid in (held.user_acl or ())


def asks_for_change(
    session: Session, users: tuple[int, ...], groups: tuple[int, ...], held: ImageRecord
) -> bool:
    """Say whether a pull that names readers is to change those of a READY image.

    It is not if the image is public, or if this user may only add himself and has been added: then
    the client would ask for ever.
    """
    if not held.is_private or not (users or groups):
        return False
    if not may_replace(session.uid, admin=session.admin, held=held):
        return False
    now = of(held)
    # The asker himself is always among the readers, whether he names himself or not.
    return ({*users, session.uid}, set(groups)) != (
        {*now.user_acl, session.uid},
        set(now.group_acl),
    )


def may_expire(session: Session, record: ImageRecord) -> bool:
    """Say whether a user may expire a tag: an admin any, others what they alone may read."""
    alone = record.is_private and record.user_acl == (session.uid,) and not record.group_acl
    return session.admin or bool(alone)


def is_reader(asker: ImageRecord, known: ImageRecord) -> bool:
    """Say whether the asker is one of the users who are named; his groups are not known here."""
    return asker.requested_by is not None and asker.requested_by in (known.user_acl or ())


def is_about_readers(asker: ImageRecord, known: ImageRecord) -> bool:
    """Say whether the work is to change the ACL only, by one who may without the registry."""
    return asker.kind == "acl" and (
        bool(asker.by_admin)
        or (known.requested_by is not None and known.requested_by == asker.requested_by)
    )


def may_skip_registry(asker: ImageRecord, held: ImageRecord) -> bool:
    """Say whether the registry need not be asked who may read an image that is there."""
    return not held.is_private or is_reader(asker, held) or is_about_readers(asker, held)


def is_of(origin: Origin | None, image: ResolvedImage) -> bool:
    """Say whether an image is known to come from the repository that another was resolved in."""
    return origin is not None and (origin.location, origin.repository) == (
        image.location,
        image.repository,
    )


def may_skip_bytes(
    asker: ImageRecord, held: ImageRecord, image: ResolvedImage, *, proven: bool
) -> bool:
    """Say whether one who has just read a manifest may have the delivered image without its bytes.

    A public one always. A private one only where it came from, and only if he is among its readers
    or has `proven` that he may read its blobs there: a copy of a manifest elsewhere proves nothing.
    """
    if not held.is_private:
        return True
    return is_of(held.origin, image) and (proven or is_reader(asker, held))


def after_pull(
    asker: ImageRecord,
    held: ImageRecord | None,
    previous: ImageRecord | None,
    *,
    private: bool,
    without_acl: str,
) -> tuple[Access, int | None]:
    """Return who may read an image after this pull, and its puller of record.

    `asker` is the record of the pull, `held` what is known of the image, `previous` the image that
    the tag meant before: its ACL goes along with the tag. `private` says that the registry wanted
    a login for it. `without_acl` is the configuration's `PrivateImagesWithoutAcl`.

    A public image stays public. Of a private one the puller of record and admins replace the ACL
    by naming one; everybody else who has shown that he has access only adds himself.
    """
    if not private or (held is not None and not held.is_private):
        return PUBLIC, asker.requested_by if held is None else held.requested_by
    known = held or (previous if previous is not None and previous.is_private else None)
    now = Access(private=True) if known is None else of(known)
    asked = Access(private=True, user_acl=asker.user_acl or (), group_acl=asker.group_acl or ())
    replaces = asked.restricted and (
        known is None or may_replace(asker.requested_by, admin=bool(asker.by_admin), held=known)
    )
    puller = _puller_of_record(asker, known, replaces=replaces)
    if replaces:
        now = asked
    elif not now.restricted and without_acl == "public":
        return now, puller
    asked_by = () if asker.requested_by in {None, ANONYMOUS} else (asker.requested_by,)
    users = (*now.user_acl, *asked_by)
    return Access(True, tuple(dict.fromkeys(users)), tuple(dict.fromkeys(now.group_acl))), puller


def _puller_of_record(
    asker: ImageRecord, known: ImageRecord | None, *, replaces: bool
) -> int | None:
    """Return who may replace the list of a private image after this pull.

    Where the original has left a list without a puller, a user who is added to it must not come to
    own it by that: the list is then its only user's, or the admins' alone (`ANONYMOUS`).
    """
    if known is None or (replaces and known.requested_by is None):
        return asker.requested_by
    if known.requested_by is not None:
        return known.requested_by
    users = known.user_acl or ()
    if not of(known).restricted:
        return asker.requested_by
    if asker.requested_by in users:
        return None
    return users[0] if len(users) == 1 else ANONYMOUS
