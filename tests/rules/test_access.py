"""Rules of access: who may read an image, and who may change its access list."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.model.images import Descriptor, Digest, ResolvedImage
from shiftergw.model.records import ImageRecord, Origin
from shiftergw.model.requests import ANONYMOUS, Session
from shiftergw.model.uploads import ImageFile
from shiftergw.rules import access
from shiftergw.rules.access import PUBLIC, Access, after_pull, after_upload
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
    """Return the READY record of an image."""
    return ImageRecord(
        status=State.READY, private=private, user_acl=users, group_acl=groups, requested_by=puller
    )


def session(uid: int, *, admin: bool = False, groups: frozenset[int] = frozenset()) -> Session:
    """Return the session of a user."""
    return Session("mycluster", f"u{uid}", uid, "users", 2100, groups, admin=admin)


def readers(
    request: ImageRecord,
    ready: ImageRecord | None = None,
    previous: ImageRecord | None = None,
    without_acl: str = "owner",
) -> Access:
    """Return the readers of a private image after a pull."""
    return after_pull(request, ready, previous, private=True, without_acl=without_acl)[0]


@pytest.mark.parametrize("uid", [ANONYMOUS, None])
def test_an_anonymous_pull_adds_no_reader(uid: int | None) -> None:
    """A pull without a user adds no uid to an ACL, neither to a new nor to an existing one."""
    anonymous = replace(pull(ALICE, (BOB,)), requested_by=uid)
    assert readers(anonymous) == Access(True, (BOB,))
    assert readers(replace(anonymous, user_acl=()), image((BOB,), (2300,))) == Access(
        True, (BOB,), (2300,)
    )


def test_a_private_image_belongs_to_its_puller() -> None:
    """Without an ACL only the puller may read it; with an ACL, its members and the puller."""
    assert readers(pull(ALICE)) == Access(True, (ALICE,))
    assert readers(pull(ALICE, (BOB,), (2300,))) == Access(True, (BOB, ALICE), (2300,))


def test_the_primary_group_is_not_added() -> None:
    """A pull that names groups admits these groups only."""
    assert readers(pull(ALICE, (), (2300,))) == Access(True, (ALICE,), (2300,))


def test_a_second_user_is_only_added() -> None:
    """Whatever ACL a second user names, that user is added and nothing else changes."""
    ready = image((ALICE,), (2300,))
    for request in (pull(BOB), pull(BOB, (CAROL,)), pull(BOB, (), (1,))):
        assert readers(request, ready) == Access(True, (ALICE, BOB), (2300,))


def test_the_puller_of_record_replaces_the_acl() -> None:
    """The ACL may shrink. The puller stays in it, and stays puller of record."""
    ready = image((ALICE, BOB, CAROL), (2300,))
    request = pull(ALICE, (CAROL,))
    assert after_pull(request, ready, None, private=True, without_acl="owner") == (
        Access(True, (CAROL, ALICE)),
        ALICE,
    )


def test_an_admin_replaces_the_acl() -> None:
    """An admin's ACL replaces the old one, and the puller of record stays the same."""
    ready = image((ALICE, BOB))
    result = after_pull(
        pull(ROOT, (CAROL,), admin=True), ready, None, private=True, without_acl="owner"
    )
    assert result == (Access(True, (CAROL, ROOT)), ALICE)


def test_a_pull_without_an_acl_keeps_it() -> None:
    """A refresh without an ACL by the puller of record or an admin keeps all readers."""
    ready = image((ALICE, BOB), (2300,))
    assert readers(pull(ALICE), ready) == Access(True, (ALICE, BOB), (2300,))
    assert readers(pull(ROOT, admin=True), ready) == Access(True, (ALICE, BOB, ROOT), (2300,))


def test_the_acl_moves_with_the_tag() -> None:
    """A new image of a tag inherits the readers and the puller of record of the private old one."""
    previous = image((ALICE, BOB))
    assert after_pull(pull(BOB), None, previous, private=True, without_acl="owner") == (
        Access(True, (ALICE, BOB)),
        ALICE,
    )
    assert readers(pull(BOB), None, image((), private=False)) == Access(True, (BOB,))


def test_a_public_image_stays_public() -> None:
    """Neither named readers nor a copy in a private repository make a public image private."""
    ready = image((), private=False)
    assert readers(pull(BOB, (CAROL,)), ready) == PUBLIC
    assert after_pull(pull(BOB), image((ALICE,)), None, private=False, without_acl="owner") == (
        PUBLIC,
        ALICE,
    )


def test_an_open_image_of_the_original_gets_a_puller() -> None:
    """A user with access who pulls such an image again becomes its puller of record."""
    for ready in (image((), (), None), image(None, None, None)):
        assert readers(pull(BOB), ready) == Access(True, (BOB,))


ORIGINAL = (
    # uid, named users, ACL before; ACL and puller of record after the pull
    (CAROL, (BOB,), (ALICE,), (ALICE, CAROL), ALICE),
    (CAROL, (), (ALICE,), (ALICE, CAROL), ALICE),
    (CAROL, (BOB,), (ALICE, BOB), (ALICE, BOB, CAROL), ANONYMOUS),
    (ALICE, (BOB,), (ALICE,), (BOB, ALICE), ALICE),
    (ALICE, (CAROL,), (ALICE, BOB), (CAROL, ALICE), ALICE),
    (BOB, (), (ALICE, BOB), (ALICE, BOB), None),
)


@pytest.mark.parametrize(("uid", "named_users", "acl", "new_acl", "puller"), ORIGINAL)
def test_a_list_of_the_original_without_a_puller(
    uid: int,
    named_users: tuple[int, ...],
    acl: tuple[int, ...],
    new_acl: tuple[int, ...],
    puller: int | None,
) -> None:
    """A user in the list replaces it. Other users are added, without becoming its owners."""
    ready = image(acl, (), None)
    result = after_pull(pull(uid, named_users), ready, None, private=True, without_acl="owner")
    assert result == (Access(True, new_acl), puller)
    updated_image = image(new_acl, (), puller)
    assert not access.would_change_readers(session(uid), named_users, (), updated_image), (
        "the client would poll forever"
    )


def test_an_admin_replaces_a_list_of_the_original() -> None:
    """Admins replace such a list, even if it has no owner."""
    for puller in (None, ANONYMOUS):
        ready = image((ALICE, BOB), (), puller)
        assert access.may_replace(ROOT, admin=True, ready=ready)
        assert readers(pull(ROOT, (CAROL,), admin=True), ready) == Access(True, (CAROL, ROOT))
    assert not access.may_replace(ANONYMOUS, admin=False, ready=image((ALICE, BOB), (), ANONYMOUS))


def test_a_site_may_keep_private_images_open() -> None:
    """With `PrivateImagesWithoutAcl: public` a private image is open until a pull names an ACL."""
    assert readers(pull(ALICE), without_acl="public") == Access(True)
    assert readers(pull(BOB), image(()), without_acl="public") == Access(True)
    assert readers(pull(ALICE, (CAROL,)), image(()), without_acl="public") == Access(
        True, (CAROL, ALICE)
    )
    assert readers(pull(BOB), image((ALICE,)), without_acl="public") == Access(True, (ALICE, BOB))


IDS = st.lists(st.sampled_from([ALICE, BOB, CAROL, 2300]), max_size=3, unique=True).map(tuple)


@given(IDS, IDS, IDS, IDS, st.sampled_from([ALICE, BOB]), st.booleans())
def test_only_puller_and_admin_change_other_users_access(
    users: tuple[int, ...],
    groups: tuple[int, ...],
    new_users: tuple[int, ...],
    new_groups: tuple[int, ...],
    uid: int,
    admin: bool,
) -> None:
    """This holds for any two ACLs. The user of the pull is always among the readers."""
    ready = image((*users, ALICE), groups)
    result = readers(pull(uid, new_users, new_groups, admin=admin), ready)
    assert uid in result.user_acl
    if uid != ALICE and not admin:
        assert {*result.user_acl} == {*users, ALICE, BOB}
        assert result.group_acl == groups
    changes_again = access.would_change_readers(
        session(uid, admin=admin),
        new_users,
        new_groups,
        image(result.user_acl, result.group_acl),
    )
    assert not changes_again, "the client would poll forever"


def test_a_change_needs_permission_and_a_difference() -> None:
    """A request without permission starts no job; nor does the present ACL in another order."""
    ready = image((ALICE, BOB), (2300,))
    alice, bob = session(ALICE), session(BOB)
    assert access.would_change_readers(alice, (CAROL,), (), ready)
    assert not access.would_change_readers(alice, (BOB,), (2300,), ready)
    assert not access.would_change_readers(alice, (), (), ready)
    assert not access.would_change_readers(bob, (CAROL,), (), ready)
    assert access.would_change_readers(session(ROOT, admin=True), (CAROL,), (), ready)
    assert not access.would_change_readers(alice, (CAROL,), (), image((), private=False))


@pytest.mark.parametrize(
    ("uid", "users", "groups", "private", "may_expire"),
    [
        (ALICE, (ALICE,), (), True, True),
        (ALICE, (ALICE, BOB), (), True, False),
        (ALICE, (ALICE,), (2300,), True, False),
        (BOB, (ALICE,), (), True, False),
        (ALICE, (), (), False, False),
    ],
)
def test_users_that_may_expire_a_tag(
    uid: int, users: tuple[int, ...], groups: tuple[int, ...], private: bool, may_expire: bool
) -> None:
    """A user may expire images that no other user may read; an admin may expire all images."""
    record = image(users, groups, private=private)
    assert access.may_expire(session(uid), record, "app:1") is may_expire
    assert access.may_expire(session(ROOT, admin=True), record, "app:1")


@pytest.mark.parametrize("private", [True, False])
def test_users_that_may_expire_an_uploaded_image(*, private: bool) -> None:
    """The owner may, whatever the readers; no reader removes the name of another user."""
    owners = {"a:1": ALICE, "b:1": BOB}
    ready = replace(
        image((ALICE, BOB, CAROL), private=private),
        itype="custom",
        upload=ImageFile("ab" * 16),
        tags=tuple(owners),
        owners=owners,
    )
    for tag, owner in owners.items():
        for uid in (ALICE, BOB, CAROL, ANONYMOUS):
            assert access.may_expire(session(uid), ready, tag) is (uid == owner)
        assert access.may_expire(session(ROOT, admin=True), ready, tag)
    only_reader = replace(ready, user_acl=(ALICE,))
    assert not access.may_expire(session(ALICE), only_reader, "b:1")


SAME_ORIGIN = Origin("registry", "lib/app", "")
OTHER_ORIGIN = Origin("registry", "bob/copy", "")
BLOB = Descriptor(Digest.of(b""), 0)
READ = ResolvedImage(BLOB.digest, BLOB.digest, BLOB, (), "registry", "lib/app")


@pytest.mark.parametrize(
    ("private", "origin", "uid", "proven", "expected"),
    [
        (False, None, BOB, False, True),
        (False, OTHER_ORIGIN, BOB, False, True),
        (True, SAME_ORIGIN, ALICE, False, True),
        (True, SAME_ORIGIN, BOB, True, True),
        (True, SAME_ORIGIN, BOB, False, False),
        (True, OTHER_ORIGIN, ALICE, False, False),
        (True, OTHER_ORIGIN, BOB, True, False),
        (True, None, ALICE, True, False),
    ],
)
def test_users_that_may_skip_the_download(
    private: bool, origin: Origin | None, uid: int, proven: bool, expected: bool
) -> None:
    """All users may for a public image; readers, and users with proof, for a private one."""
    ready = replace(image((ALICE,), private=private), origin=origin)
    assert access.may_skip_download(pull(uid), ready, READ, proven=proven) is expected


def test_each_tag_belongs_to_its_own_user() -> None:
    """Users whose custom images have one content share its record, but not their tags."""
    first = replace(pull(ALICE), pulltag="alices:1")
    owners = access.tag_owners(first, None)
    ready = replace(image((ALICE,)), tags=("alices:1",), owners=owners)
    owners = access.tag_owners(replace(pull(BOB), pulltag="bobs:1"), ready)
    assert owners == {"alices:1": ALICE, "bobs:1": BOB}
    ready = replace(ready, tags=("alices:1", "bobs:1"), owners=owners)
    assert access.may_replace_tag(session(BOB), ready, "bobs:1")
    assert not access.may_replace_tag(session(ALICE), ready, "bobs:1")
    assert not access.may_replace_tag(session(BOB), ready, "alices:1")
    assert access.may_replace_tag(session(ROOT, admin=True), ready, "alices:1")
    admin_pull = replace(pull(ROOT, admin=True), pulltag="bobs:1")
    assert access.tag_owners(admin_pull, ready) == owners


def test_tags_of_earlier_records() -> None:
    """Such tags belong to the puller of record, or to admins alone without one."""
    request = replace(pull(BOB), pulltag="bobs:1")
    for puller, owner in ((ALICE, ALICE), (None, ANONYMOUS)):
        ready = replace(image((), puller=puller), tags=("app:1",))
        assert access.may_replace_tag(session(ALICE), ready, "app:1") is (puller == ALICE)
        assert access.tag_owners(request, ready) == {"app:1": owner, "bobs:1": BOB}


def upload_pull(request: ImageRecord, *, public: bool = False) -> ImageRecord:
    """Return the request with an upload."""
    return replace(
        request,
        system="mycluster",
        itype="custom",
        pulltag="app:1",
        upload=ImageFile("ab" * 16, public=public),
    )


def custom_image(ready: ImageRecord, owners: dict[str, int]) -> ImageRecord:
    """Return a READY record of an image of an upload, with the owners of its tags."""
    return replace(
        ready,
        system="mycluster",
        itype="custom",
        tags=tuple(owners),
        owners=owners,
        upload=ImageFile("cd" * 16),
    )


def test_an_upload_states_its_readers() -> None:
    """The owner replaces the list, also by an empty one; owners of other tags stay readers."""
    ready = custom_image(image((ALICE, BOB, CAROL), (2300,)), {"app:1": ALICE, "copy:1": BOB})
    assert after_upload(upload_pull(pull(ALICE)), [ready]) == (Access(True, (ALICE, BOB)), ALICE)
    assert after_upload(upload_pull(pull(ALICE), public=True), [ready]) == (PUBLIC, ALICE)
    assert after_upload(upload_pull(pull(ALICE, (CAROL,), (5,))), []) == (
        Access(True, (CAROL, ALICE), (5,)),
        ALICE,
    )


def test_a_second_uploader_is_only_added() -> None:
    """The second uploader neither opens nor narrows the image of the first."""
    ready = custom_image(image((ALICE, CAROL), (2300,)), {"app:1": ALICE})
    for public in (False, True):
        request = upload_pull(pull(BOB, (7,)), public=public)
        assert after_upload(request, [ready]) == (Access(True, (ALICE, CAROL, BOB), (2300,)), ALICE)
        public_image = replace(ready, private=False, user_acl=(), group_acl=())
        assert after_upload(request, [public_image]) == (PUBLIC, ALICE)


def test_a_public_image_of_a_registry_stays_public() -> None:
    """A private upload of the same content does not restrict the registry's image."""
    assert after_upload(upload_pull(pull(ALICE)), [image((), private=False)]) == (PUBLIC, ALICE)


@given(
    IDS, IDS, IDS, IDS, st.sampled_from([ALICE, BOB]), st.booleans(), st.booleans(), st.booleans()
)
def test_polls_of_an_upload_end(
    users: tuple[int, ...],
    groups: tuple[int, ...],
    named_users: tuple[int, ...],
    named_groups: tuple[int, ...],
    uid: int,
    admin: bool,
    private: bool,
    public: bool,
) -> None:
    """The result of a pull answers the same request, whatever the image was before."""
    ready = custom_image(image(users, groups, private=private), {"app:2": ALICE, "copy:1": BOB})
    request = upload_pull(pull(uid, named_users, named_groups, admin=admin), public=public)
    result, puller = after_upload(request, [ready])
    owners = access.tag_owners(request, ready)
    outcome = replace(
        custom_image(
            image(result.user_acl, result.group_acl, puller, private=result.private), owners
        ),
        upload=request.upload,
    )
    assert not access.would_change_upload_readers(
        session(uid, admin=admin), named_users, named_groups, outcome
    )


@pytest.mark.parametrize(
    ("only_user", "record", "uid", "expected"),
    [
        (ALICE, image((), private=False), ALICE, True),
        (None, image((), private=False), ALICE, False),
        (BOB, image((), private=False), ALICE, False),
        (ANONYMOUS, image((), private=False), ANONYMOUS, False),
        (None, replace(image((ALICE,)), tags=("a:1",)), ALICE, True),
        (None, image((ALICE,)), ALICE, False),
        (None, replace(image((ALICE, BOB)), tags=("a:1",)), ALICE, False),
    ],
)
def test_who_may_remove_an_image(
    only_user: int | None, record: ImageRecord, uid: int, expected: bool
) -> None:
    """Its only user, and the only reader of a private image with a name; an admin always."""
    record = replace(record, only_user=only_user)
    assert access.may_remove(session(uid), record) == expected
    assert access.may_remove(session(ROOT, admin=True), record)


def test_an_upload_with_names_of_others_stays() -> None:
    """A user removes an uploaded image only if all its names are the user's own."""
    record = replace(
        image((), private=False), itype="custom", upload=ImageFile("u"), tags=("a:1", "b:1")
    )
    for owners, expected in (({"a:1": ALICE}, True), ({"a:1": ALICE, "b:1": BOB}, False)):
        record = replace(record, owners=owners)
        assert access.may_remove(session(ALICE), record) == expected
        assert access.is_owner(session(ALICE), record)
        assert access.is_owner(session(BOB), record) == (not expected)
    assert not access.is_owner(session(ANONYMOUS), replace(record, requested_by=ANONYMOUS))
