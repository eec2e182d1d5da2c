"""References and their grammar; records and their documents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import BadRequest
from shiftergw.model.images import Digest
from shiftergw.model.records import ImageRecord, Origin, Progress, document_of
from shiftergw.model.references import REFERENCE_LIMIT, ImageReference
from shiftergw.model.requests import PullRequest, RegistryLogin, Session
from shiftergw.states import State

HEX = "0123456789abcdef" * 4
AT = f"@sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "name", "tag", "normal"),
    [
        ("ubuntu", "ubuntu", "latest", "ubuntu:latest"),
        ("ubuntu:24.04", "ubuntu", "24.04", "ubuntu:24.04"),
        ("quay.io/a/b:1", "quay.io/a/b", "1", "quay.io/a/b:1"),
        ("host:5000/x", "host:5000/x", "latest", "host:5000/x:latest"),
        ("host:5000/x:1", "host:5000/x", "1", "host:5000/x:1"),
        ("[::1]:5000/x:1", "[::1]:5000/x", "1", "[::1]:5000/x:1"),
        ("Site/x:1", "Site/x", "1", "Site/x:1"),
        ("a__b/c-d--e.f_g:_T.x-y", "a__b/c-d--e.f_g", "_T.x-y", "a__b/c-d--e.f_g:_T.x-y"),
        (f"x{AT}", "x", "", f"x{AT}"),
        (f"x:1{AT}", "x", "1", f"x:1{AT}"),
        ("x:" + "t" * 128, "x", "t" * 128, "x:" + "t" * 128),
    ],
)
def test_references(text: str, name: str, tag: str, normal: str) -> None:
    """Each reference has a name, a tag, and a normalized text."""
    reference = ImageReference.parse(text)
    assert (reference.name, reference.tag, str(reference)) == (name, tag, normal)
    assert reference.digest == (Digest("sha256", HEX) if AT in text else None)
    assert ImageReference.parse(normal) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "x:",
        "x:-a",
        "x:a b",
        "Ubuntu",
        "x/",
        "/x",
        "a//b",
        "../etc",
        "x/../y",
        "-x",
        "x\n",
        "x:1\n",
        "x\x00",
        "ü:1",
        "x:1:2",
        "x@",
        f"{AT}",
        f"x{AT}0",
        "x@sha256:zz",
        "x@md5:00",
        "x@sha256:00",
        "x:" + "t" * 129,
        "x" * (REFERENCE_LIMIT + 1),
    ],
)
def test_invalid_references(text: str) -> None:
    """Any other text is an error that repeats it in printable form."""
    with pytest.raises(BadRequest) as caught:
        ImageReference.parse(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    """Any text gives a reference whose text parses to the same reference, or `BadRequest`."""
    try:
        reference = ImageReference.parse(text)
    except BadRequest:
        return
    assert ImageReference.parse(str(reference)) == reference
    assert ".." not in reference.name.split("/")


def test_login() -> None:
    """The password can contain colons, and is not in the representation."""
    login = RegistryLogin.parse("alice:pa:ss")
    assert (login.user, login.password) == ("alice", "pa:ss")
    assert "pa:ss" not in repr(login)
    assert RegistryLogin.parse("alice") == RegistryLogin("alice", "")


def test_pull_request() -> None:
    """Tag and claim come from the normalized reference; a secret is not in the representation."""
    wish = PullRequest("alpha", "docker", ImageReference.parse("x"), 1, sealed="secret")
    assert (wish.tag, wish.claim) == ("x:latest", "alpha/docker/x:latest")
    assert "secret" not in repr(wish)


def _session(uid: int = 1, *groups: int) -> Session:
    return Session("alpha", "alice", uid, "users", 100, frozenset({100, *groups}))


@pytest.mark.parametrize(
    ("private", "users", "groups", "readable"),
    [
        (False, (), (), True),
        (False, (9,), (), True),
        (None, (9,), (), False),
        (None, None, None, True),
        (None, (), (), True),
        (True, None, None, True),
        (True, (), (), True),
        (True, (1, 9), (), True),
        (True, (9,), None, False),
        (True, None, (100,), True),
        (True, (9,), (7,), True),
        (True, (), (8,), False),
    ],
)
def test_readers_of_an_image(
    private: bool | None,
    users: tuple[int, ...] | None,
    groups: tuple[int, ...] | None,
    readable: bool,
) -> None:
    """Everybody may read public images; the members of the ACL may read private ones."""
    record = ImageRecord(private=private, user_acl=users, group_acl=groups)
    assert record.may_be_read_by(_session(1, 7)) is readable


def test_a_record_and_its_document() -> None:
    """Attributes get the original gateway's names in the document, and read back the same."""
    record = ImageRecord(
        key="1" * 24,
        system="alpha",
        tags=("x:1", "y:1"),
        pulltag="x:1",
        status=State.READY,
        id=HEX,
        user_acl=(1, 2),
        group_acl=(),
        private=True,
        env=("A=1",),
        entry=("/bin/sh",),
        cmd=("-c",),
        workdir="/",
        labels={"a": "b"},
        last_pull=12.5,
        origin=Origin("hub", "x", "sha256:" + HEX, private=True),
    )
    names = [name for name in ImageRecord.__slots__ if name != "key"]
    document = document_of({name: getattr(record, name) for name in names})
    assert document["tag"] == ["x:1", "y:1"]
    assert (document["userACL"], document["groupACL"]) == ([1, 2], [])
    assert (document["ENV"], document["ENTRY"], document["CMD"]) == (["A=1"], ["/bin/sh"], ["-c"])
    assert (document["WORKDIR"], document["LABELS"]) == ("/", {"a": "b"})
    assert (document["status"], type(document["status"])) == ("READY", str)
    assert document["origin"]["repository"] == "x"
    assert ImageRecord.from_document(document | {"_id": "1" * 24}) == record


def test_documents_of_the_original() -> None:
    """Strings instead of lists, and null, missing and unknown members are read."""
    record = ImageRecord.from_document(
        {"tag": "x:1", "ENTRY": "/bin/sh", "CMD": "-l", "private": None, "site_note": 1}
    )
    assert (record.tags, record.entry, record.cmd) == (("x:1",), ("/bin/sh",), ("-l",))
    assert (record.private, record.user_acl, record.last_pull) == (None, None, None)
    assert (record.key, record.status, record.in_flight) == ("", State.PENDING, False)


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("SUCCESS", State.READY),
        ("READY", State.READY),
        ("PULLING", State.PULLING),
        ("HASHING", State.FAILURE),
        ("of the future", State.FAILURE),
    ],
)
def test_states_of_the_original(word: str, state: State) -> None:
    """An unknown status does not make a record unreadable."""
    assert ImageRecord.from_document({"status": word}).status is state


def test_an_origin_with_more_members() -> None:
    """Unknown members, which a later version may write, are ignored."""
    origin = {"location": "hub", "repository": "x", "source_digest": "d", "mirror": "m"}
    record = ImageRecord.from_document({"origin": origin})
    assert record.origin == Origin("hub", "x", "d")


def test_secrets_are_not_in_representations() -> None:
    """The representation of a record has no sealed logins."""
    assert "secret" not in repr(ImageRecord(sealed="secret"))


@pytest.mark.parametrize(
    ("earlier", "progress", "expected"),
    [
        (Progress(), Progress("fetch", 0, 10), (0, 10)),
        (Progress("fetch", 5, 10), Progress("fetch", 7, 10), (7, 10)),
        (Progress("fetch", 7, 10), Progress("fetch", 0, 10), (7, 10)),
        (Progress("fetch", 7, 10), Progress("fetch", 99, 10), (10, 10)),
        (Progress("fetch", 7, 10), Progress("pack", 1, 10), (1, 10)),
        (Progress("compose", 7, 10), Progress("compose"), (7, 10)),
        (Progress("import", 7), Progress("import", 9), (9, 0)),
        (Progress("import", 7), Progress("import", 9, 8), (8, 8)),
    ],
)
def test_progress_never_goes_back(
    earlier: Progress, progress: Progress, expected: tuple[int, int]
) -> None:
    """Within a stage the bytes never become fewer, and never more than the total."""
    after = progress.after(earlier)
    assert (after.stage, after.done, after.total) == (progress.stage, *expected)
