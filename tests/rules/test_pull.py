"""The steps of a pull are decided by tag, manifest, readers and user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from shiftergw.model.images import Descriptor, Digest, ResolvedImage
from shiftergw.model.records import ImageRecord, Origin
from shiftergw.rules.pull import (
    Build,
    Prove,
    Readers,
    Reuse,
    decide_from_manifest,
    decide_from_tag,
    should_ask_digest,
)
from shiftergw.states import State

ALICE, BOB, ROOT = 2001, 2002, 0
MANIFEST, INDEX = Digest.of(b"the manifest"), Digest.of(b"the index")
IMAGE = ResolvedImage(
    MANIFEST, INDEX, Descriptor(Digest.of(b"config"), 6), (), "registry", "lib/app", private=True
)

ORIGIN = Origin("registry", "lib/app", str(INDEX), private=True)
PUBLIC = ImageRecord(
    status=State.READY, id=MANIFEST.hex, private=False, requested_by=ALICE, origin=ORIGIN
)
PRIVATE = replace(PUBLIC, private=True, user_acl=(ALICE,))
OTHER_ORIGIN = replace(PRIVATE, origin=replace(ORIGIN, repository="bob/copy"))
OF_THE_ORIGINAL = replace(PUBLIC, id=INDEX.hex, origin=None)

PULL_OF_ALICE = ImageRecord(requested_by=ALICE)
PULL_OF_BOB = ImageRecord(requested_by=BOB)
ACL_OF_ALICE = replace(PULL_OF_ALICE, kind="acl")
ACL_OF_BOB = replace(PULL_OF_BOB, kind="acl")
ACL_OF_ADMIN = ImageRecord(requested_by=ROOT, kind="acl", by_admin=True)


@pytest.mark.parametrize(
    ("request_", "current", "is_asked"),
    [
        (PULL_OF_ALICE, None, False),
        (PULL_OF_BOB, PUBLIC, True),
        (PULL_OF_ALICE, PRIVATE, True),
        (PULL_OF_BOB, PRIVATE, False),
        (ACL_OF_ALICE, PRIVATE, False),
        (ACL_OF_ADMIN, PRIVATE, False),
        (ACL_OF_BOB, PRIVATE, False),
    ],
)
def test_the_digest_is_asked_only_where_it_decides(
    request_: ImageRecord, current: ImageRecord | None, *, is_asked: bool
) -> None:
    """No digest is requested for a new tag, for a stranger, or for a change of readers alone."""
    assert should_ask_digest(request_, current, stores_labels=False) is is_asked


@pytest.mark.parametrize(
    ("current", "stores_labels", "is_asked"),
    [
        (PUBLIC, True, False),
        (PUBLIC, False, True),
        (replace(PUBLIC, labels={}), True, True),
        (OF_THE_ORIGINAL, True, True),
    ],
)
def test_an_image_without_labels_is_resolved_again(
    current: ImageRecord, *, stores_labels: bool, is_asked: bool
) -> None:
    """If the site stores labels now, the digest alone is not enough; the original's images stay."""
    assert should_ask_digest(PULL_OF_BOB, current, stores_labels=stores_labels) is is_asked


@pytest.mark.parametrize(
    ("request_", "current", "digest", "decision"),
    [
        (PULL_OF_ALICE, None, None, None),
        (PULL_OF_ALICE, None, str(INDEX), None),
        (PULL_OF_BOB, PUBLIC, str(INDEX), Reuse(PUBLIC)),
        (PULL_OF_BOB, PUBLIC, str(MANIFEST), None),
        (PULL_OF_BOB, PUBLIC, None, None),
        (PULL_OF_ALICE, PRIVATE, str(INDEX), Reuse(PRIVATE)),
        (PULL_OF_BOB, OF_THE_ORIGINAL, str(INDEX), Reuse(OF_THE_ORIGINAL)),
        (PULL_OF_BOB, OF_THE_ORIGINAL, str(MANIFEST), None),
        (ACL_OF_ALICE, PRIVATE, None, Readers(PRIVATE)),
        (ACL_OF_ADMIN, PRIVATE, None, Readers(PRIVATE)),
        (ACL_OF_BOB, PRIVATE, None, None),
        (ACL_OF_ALICE, replace(PRIVATE, requested_by=None), None, None),
    ],
)
def test_decision_from_the_tag(
    request_: ImageRecord,
    current: ImageRecord | None,
    digest: str | None,
    decision: Readers | Reuse | None,
) -> None:
    """An unchanged digest, or the right to change the readers, makes the manifest unnecessary."""
    assert decide_from_tag(request_, current, digest) == decision


@pytest.mark.parametrize(
    ("request_", "ready", "decision"),
    [
        (PULL_OF_ALICE, [], Build()),
        (PULL_OF_BOB, [PUBLIC], Reuse(PUBLIC)),
        (PULL_OF_BOB, [OF_THE_ORIGINAL], Reuse(OF_THE_ORIGINAL)),
        (PULL_OF_ALICE, [PRIVATE], Reuse(PRIVATE)),
        (PULL_OF_BOB, [PRIVATE], Prove(PRIVATE)),
        (PULL_OF_BOB, [OTHER_ORIGIN], Build()),
        (PULL_OF_ALICE, [OTHER_ORIGIN], Build()),
        (PULL_OF_BOB, [OTHER_ORIGIN, PRIVATE], Prove(PRIVATE)),
        (PULL_OF_BOB, [PRIVATE, PUBLIC], Reuse(PUBLIC)),
        (PULL_OF_BOB, [replace(PRIVATE, origin=None)], Build()),
        (ACL_OF_BOB, [PRIVATE], Prove(PRIVATE)),
    ],
)
def test_decision_from_the_manifest(
    request_: ImageRecord, ready: Sequence[ImageRecord], decision: Reuse | Prove | Build
) -> None:
    """A private image is reused only in its own repository, by its readers or after a proof."""
    assert decide_from_manifest(request_, IMAGE, ready) == decision


@pytest.mark.parametrize("ready", [[PUBLIC], [PRIVATE]])
@pytest.mark.parametrize(("missing", "is_built"), [(MANIFEST, True), (INDEX, False)])
def test_an_image_without_its_file_is_built(
    ready: Sequence[ImageRecord], missing: Digest, *, is_built: bool
) -> None:
    """An image is built if its own file is missing; missing files of other images do not matter."""
    decision = decide_from_manifest(PULL_OF_ALICE, IMAGE, ready, missing.hex)
    assert (decision == Build()) is is_built
