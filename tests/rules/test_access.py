"""Who may read an image, and who may change that: the rules, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.image import Descriptor, Digest, ResolvedImage
from shiftergw.model import ANONYMOUS, ImageRecord, Origin, Session
from shiftergw.rules import access
from shiftergw.rules.access import PUBLIC, Access, after_pull
from shiftergw.states import State

ALICE, BOB, CAROL, ROOT = 2001, 2002, 2003, 0


def pull(
    uid: int, users: tuple[int, ...] = (), groups: tuple[int, ...] = (), *, admin: bool = False
) -> ImageRecord:
    """Return the record of a pull."""
    return ImageRecord(requested_by=uid, user_acl=users, group_acl=groups, by_admin=admin)


def image(
    users: tuple[int, ...] | None,
    groups: tuple[int, ...] | None = (),
    puller: int | None = ALICE,
    *,
    private: bool | None = True,
) -> ImageRecord:
    """Return the record of an image that is there."""
    return ImageRecord(
        status=State.READY, private=private, user_acl=users, group_acl=groups, requested_by=puller
    )


def session(uid: int, *, admin: bool = False, groups: frozenset[int] = frozenset()) -> Session:
    """Return a user."""
    return Session("mycluster", f"u{uid}", uid, "users", 2100, groups, admin=admin)


def readers(
    asker: ImageRecord,
    held: ImageRecord | None = None,
    previous: ImageRecord | None = None,
    without_acl: str = "owner",
) -> Access:
    """Return who may read a private image after a pull."""
    return after_pull(asker, held, previous, private=True, without_acl=without_acl)[0]


@pytest.mark.parametrize("asker", [ANONYMOUS, None])
def test_nobody_in_particular_is_no_reader(asker: int | None) -> None:
    """A pull without a user adds none to an ACL: not to a new one, nor to one that is there."""
    nobody = replace(pull(ALICE, (BOB,)), requested_by=asker)
    assert readers(nobody) == Access(True, (BOB,))
    assert readers(replace(nobody, user_acl=()), image((BOB,), (2300,))) == Access(
        True, (BOB,), (2300,)
    )


def test_a_private_image_is_its_puller_s() -> None:
    """Without an ACL he alone reads it; with one, those he names and he himself."""
    assert readers(pull(ALICE)) == Access(True, (ALICE,))
    assert readers(pull(ALICE, (BOB,), (2300,))) == Access(True, (BOB, ALICE), (2300,))


def test_the_primary_group_is_not_added() -> None:
    """Naming groups lets those groups in, and no other."""
    assert readers(pull(ALICE, (), (2300,))) == Access(True, (ALICE,), (2300,))


def test_a_second_user_only_adds_himself() -> None:
    """Whatever he asks for: nobody is removed, and nobody else is let in by him."""
    held = image((ALICE,), (2300,))
    for asked in (pull(BOB), pull(BOB, (CAROL,)), pull(BOB, (), (1,))):
        assert readers(asked, held) == Access(True, (ALICE, BOB), (2300,))


def test_the_puller_of_record_replaces_the_acl() -> None:
    """It may shrink; he stays among its readers, and puller of record."""
    held = image((ALICE, BOB, CAROL), (2300,))
    asked = pull(ALICE, (CAROL,))
    assert after_pull(asked, held, None, private=True, without_acl="owner") == (
        Access(True, (CAROL, ALICE)),
        ALICE,
    )


def test_an_admin_replaces_the_acl() -> None:
    """And the puller of record stays who he was."""
    held = image((ALICE, BOB))
    found = after_pull(
        pull(ROOT, (CAROL,), admin=True), held, None, private=True, without_acl="owner"
    )
    assert found == (Access(True, (CAROL, ROOT)), ALICE)


def test_a_pull_without_an_acl_keeps_it() -> None:
    """A refresh by the puller of record, or by an admin, opens nothing and closes nothing."""
    held = image((ALICE, BOB), (2300,))
    assert readers(pull(ALICE), held) == Access(True, (ALICE, BOB), (2300,))
    assert readers(pull(ROOT, admin=True), held) == Access(True, (ALICE, BOB, ROOT), (2300,))


def test_the_acl_goes_along_with_the_tag() -> None:
    """An image that takes a private one's tag has its readers, and its puller of record."""
    previous = image((ALICE, BOB))
    assert after_pull(pull(BOB), None, previous, private=True, without_acl="owner") == (
        Access(True, (ALICE, BOB)),
        ALICE,
    )
    assert readers(pull(BOB), None, image((), private=False)) == Access(True, (BOB,))


def test_a_public_image_stays_public() -> None:
    """Also for one whose copy lies in a private repository; named readers change nothing."""
    held = image((), private=False)
    assert readers(pull(BOB, (CAROL,)), held) == PUBLIC
    assert after_pull(pull(BOB), image((ALICE,)), None, private=False, without_acl="owner") == (
        PUBLIC,
        ALICE,
    )


def test_an_open_image_of_the_original_gets_a_puller() -> None:
    """Private without any ACL was open; who pulls it anew, with access, owns it from then on."""
    for held in (image((), (), None), image(None, None, None)):
        assert readers(pull(BOB), held) == Access(True, (BOB,))


ORIGINAL = (
    # Who pulls, whom they name, the list there is; the list and the puller of record after it.
    (CAROL, (BOB,), (ALICE,), (ALICE, CAROL), ALICE),
    (CAROL, (), (ALICE,), (ALICE, CAROL), ALICE),
    (CAROL, (BOB,), (ALICE, BOB), (ALICE, BOB, CAROL), ANONYMOUS),
    (ALICE, (BOB,), (ALICE,), (BOB, ALICE), ALICE),
    (ALICE, (CAROL,), (ALICE, BOB), (CAROL, ALICE), ALICE),
    (BOB, (), (ALICE, BOB), (ALICE, BOB), None),
)


@pytest.mark.parametrize(("uid", "named", "listed", "after", "puller"), ORIGINAL)
def test_a_list_of_the_original_without_a_puller(
    uid: int,
    named: tuple[int, ...],
    listed: tuple[int, ...],
    after: tuple[int, ...],
    puller: int | None,
) -> None:
    """Somebody on the list replaces it; others are added, and do not come to own it by that."""
    held = image(listed, (), None)
    found = after_pull(pull(uid, named), held, None, private=True, without_acl="owner")
    assert found == (Access(True, after), puller)
    known = image(after, (), puller)
    assert not access.would_change_readers(session(uid), named, (), known), "it would poll for ever"


def test_an_admin_replaces_a_list_of_the_original() -> None:
    """Also where nobody owns it any more."""
    for puller in (None, ANONYMOUS):
        held = image((ALICE, BOB), (), puller)
        assert access.may_replace(ROOT, admin=True, ready=held)
        assert readers(pull(ROOT, (CAROL,), admin=True), held) == Access(True, (CAROL, ROOT))
    assert not access.may_replace(ANONYMOUS, admin=False, ready=image((ALICE, BOB), (), ANONYMOUS))


def test_a_site_may_keep_private_images_open() -> None:
    """`PrivateImagesWithoutAcl: public`: without an ACL there is none, until somebody names one."""
    assert readers(pull(ALICE), without_acl="public") == Access(True)
    assert readers(pull(BOB), image(()), without_acl="public") == Access(True)
    assert readers(pull(ALICE, (CAROL,)), image(()), without_acl="public") == Access(
        True, (CAROL, ALICE)
    )
    assert readers(pull(BOB), image((ALICE,)), without_acl="public") == Access(True, (ALICE, BOB))


IDS = st.lists(st.sampled_from([ALICE, BOB, CAROL, 2300]), max_size=3, unique=True).map(tuple)


@given(IDS, IDS, IDS, IDS, st.sampled_from([ALICE, BOB]), st.booleans())
def test_nobody_but_puller_and_admin_lets_others_in_or_out(
    users: tuple[int, ...],
    groups: tuple[int, ...],
    asked_users: tuple[int, ...],
    asked_groups: tuple[int, ...],
    uid: int,
    admin: bool,
) -> None:
    """Whatever the two ACLs are; and the asker is among the readers always."""
    held = image((*users, ALICE), groups)
    found = readers(pull(uid, asked_users, asked_groups, admin=admin), held)
    assert uid in found.user_acl
    if uid != ALICE and not admin:
        assert {*found.user_acl} == {*users, ALICE, BOB}
        assert found.group_acl == groups
    asked_again = access.would_change_readers(
        session(uid, admin=admin),
        asked_users,
        asked_groups,
        image(found.user_acl, found.group_acl),
    )
    assert not asked_again, "a client that polls would ask for ever"


def test_a_change_is_asked_for_by_those_who_may() -> None:
    """Others' wishes are no reason to work; nor is what holds already, in another order."""
    held = image((ALICE, BOB), (2300,))
    alice, bob = session(ALICE), session(BOB)
    assert access.would_change_readers(alice, (CAROL,), (), held)
    assert not access.would_change_readers(alice, (BOB,), (2300,), held)
    assert not access.would_change_readers(alice, (), (), held)
    assert not access.would_change_readers(bob, (CAROL,), (), held)
    assert access.would_change_readers(session(ROOT, admin=True), (CAROL,), (), held)
    assert not access.would_change_readers(alice, (CAROL,), (), image((), private=False))


@pytest.mark.parametrize(
    ("uid", "users", "groups", "private", "allowed"),
    [
        (ALICE, (ALICE,), (), True, True),
        (ALICE, (ALICE, BOB), (), True, False),
        (ALICE, (ALICE,), (2300,), True, False),
        (BOB, (ALICE,), (), True, False),
        (ALICE, (), (), False, False),
    ],
)
def test_who_expires_a_tag(
    uid: int, users: tuple[int, ...], groups: tuple[int, ...], private: bool, allowed: bool
) -> None:
    """A user what he alone may read, an admin everything."""
    record = image(users, groups, private=private)
    assert access.may_expire(session(uid), record) is allowed
    assert access.may_expire(session(ROOT, admin=True), record)


HERE, ELSEWHERE = Origin("registry", "lib/app", ""), Origin("registry", "bob/copy", "")
BLOB = Descriptor(Digest.of(b""), 0)
READ = ResolvedImage(BLOB.digest, BLOB.digest, BLOB, (), "registry", "lib/app")


@pytest.mark.parametrize(
    ("private", "origin", "uid", "proven", "expected"),
    [
        (False, None, BOB, False, True),
        (False, ELSEWHERE, BOB, False, True),
        (True, HERE, ALICE, False, True),
        (True, HERE, BOB, True, True),
        (True, HERE, BOB, False, False),
        (True, ELSEWHERE, ALICE, False, False),
        (True, ELSEWHERE, BOB, True, False),
        (True, None, ALICE, True, False),
    ],
)
def test_who_has_an_image_without_its_bytes(
    private: bool, origin: Origin | None, uid: int, proven: bool, expected: bool
) -> None:
    """Everybody a public one; a private one its readers, and who may read it where it is from."""
    held = replace(image((ALICE,), private=private), origin=origin)
    assert access.may_skip_download(pull(uid), held, READ, proven=proven) is expected
