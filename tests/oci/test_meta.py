"""The `.meta` file: what is written is what the C runtime reads, and the ACL above all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import PullError
from shiftergw.names import ACL_LIMIT
from shiftergw.oci.meta import AclTooLong, Meta, MetaRejected, read_meta, write_meta

# What breaks lines, lists and numbers comes up far more often than by chance.
TEXT = st.text(
    st.sampled_from("\n\r\0\\'\"[]u,:#= \t\v\fA1/ü\x85\xa0\ud800") | st.characters(), max_size=12
)
ENV = st.builds("{}={}".format, TEXT, TEXT) | TEXT
IDS = st.lists(st.integers(0, 2**32 - 2), max_size=5)
BLANKS = " \t\v\f\r\n"


@given(
    env=st.lists(ENV, max_size=5),
    entry=st.lists(TEXT, max_size=3),
    cmd=st.lists(TEXT, max_size=3),
    workdir=TEXT,
    user_acl=IDS,
    group_acl=IDS,
)
def test_what_is_read_is_what_was_meant(
    env: list[str],
    entry: list[str],
    cmd: list[str],
    workdir: str,
    user_acl: list[int],
    group_acl: list[int],
) -> None:
    """Each value is read back as it stood or is named as left out; the ACL always as it stood."""
    private = bool(user_acl or group_acl)
    file = write_meta(
        env=env,
        entry=entry,
        cmd=cmd,
        workdir=workdir,
        private=private,
        user_acl=user_acl,
        group_acl=group_acl,
    )
    found = read_meta(file.content)
    assert found.format == "squashfs"
    assert found.user_acl == (tuple(user_acl) if private else None)
    assert found.group_acl == (tuple(group_acl) if private else None)
    assert found.warnings == []
    for name, meant, read in (
        ("ENTRY", tuple(entry), found.entry),
        ("CMD", tuple(cmd), found.cmd),
        ("WORKDIR", workdir, found.workdir),
    ):
        assert (name in file.omissions) == bool(meant and read is None)
        assert read in (None, meant)
    kept = list(found.env)
    left_out = [name for name in file.omissions if name.startswith("ENV ")]
    for one in env:
        if kept and kept[0] == one.rstrip(BLANKS):
            if kept.pop(0) != one:
                assert left_out.pop(0).endswith("(blanks at its end)")
        else:
            left_out.pop(0)
    assert (kept, left_out) == ([], [])
    assert all(name.isprintable() for name in file.omissions)


@given(st.lists(st.sampled_from([1, 2**32 - 2]), min_size=1), TEXT)
def test_no_value_opens_a_private_image(user_acl: list[int], value: str) -> None:
    """Whatever stands in the image, the last lines are the ACL and they are read."""
    file = write_meta(
        env=[value], entry=[value], cmd=[value], workdir=value, private=True, user_acl=user_acl
    )
    users = ",".join(map(str, user_acl)).encode()
    assert file.content.endswith(b"\nUSERACL: " + users + b"\nGROUPACL: \n")
    assert read_meta(file.content).user_acl == tuple(user_acl)


def test_whole_file() -> None:
    """A private image with everything looks like this."""
    file = write_meta(
        env=["PATH=/bin", "A=b: c"],
        entry=["/bin/sh", "-c"],
        cmd=["echo"],
        workdir="/srv",
        private=True,
        user_acl=[2001, 2002],
        group_acl=[2300],
    )
    assert file.content == (
        b"FORMAT: squashfs\nENTRY: ['/bin/sh', '-c']\nCMD: ['echo']\nWORKDIR: /srv\n"
        b"ENV: PATH=/bin\nENV: A=b: c\nUSERACL: 2001,2002\nGROUPACL: 2300\n"
    )
    assert file.omissions == ()


def test_public_file() -> None:
    """A public image has no ACL lines, whatever lists it was given."""
    assert write_meta(user_acl=[1], group_acl=[2]).content == b"FORMAT: squashfs\n"


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["it's"], b"ENTRY: it's\n"),
        (["a", "it's"], None),
        (["['a'"], None),
        (["[u'a'"], None),
        (["it's "], None),
        (["it's\\"], None),
        (["a\\", "b\\n"], b"ENTRY: ['a\\', 'b\\n']\n"),
        (["a\nb"], None),
        ([" a "], b"ENTRY: [' a ']\n"),
        (["", ""], b"ENTRY: ['', '']\n"),
    ],
)
def test_lists(words: list[str], written: bytes | None) -> None:
    """A list is written without escapes; what cannot be said so is left out as a whole."""
    file = write_meta(entry=words)
    assert file.content == b"FORMAT: squashfs\n" + (written or b"")
    assert file.omissions == (() if written else ("ENTRY",))
    assert read_meta(file.content).entry == (tuple(words) if written else None)


@pytest.mark.parametrize("evil", ["/x\\", "/x\\ ", "/x\nUSERACL: 5", "/x\r", "/x\0y", "\ud800"])
def test_values_that_would_break_lines(evil: str) -> None:
    """A value that would swallow or make a line is left out and named."""
    file = write_meta(workdir=evil, env=[f"A={evil}z\\"], private=True, user_acl=[7])
    assert file.omissions == ("WORKDIR", "ENV A")
    assert read_meta(file.content) == Meta("squashfs", user_acl=(7,), group_acl=())


def test_private_image_without_reader() -> None:
    """The runtime lets everybody in where both lists are empty: such a file is never written."""
    with pytest.raises(ValueError, match="at least one reader"):
        write_meta(private=True)


@pytest.mark.parametrize("users", [True, False])
def test_longest_acl(users: bool) -> None:
    """A list of 1000 is read; one more would abort the runtime and is an error for the user."""
    ids = list(range(ACL_LIMIT))
    name = "user_acl" if users else "group_acl"
    assert getattr(read_meta(acl_file(name, ids)), name) == tuple(ids)
    with pytest.raises(AclTooLong) as caught:
        acl_file(name, [*ids, 1000])
    assert isinstance(caught.value, PullError)


def acl_file(name: str, ids: list[int]) -> bytes:
    """Return the file of a private image with one list."""
    if name == "user_acl":
        return write_meta(private=True, user_acl=ids).content
    return write_meta(private=True, group_acl=ids).content


@pytest.mark.parametrize("bad", [-1, 2**32 - 1, 2**32])
def test_ids_that_wrap(bad: int) -> None:
    """An id that the runtime would read as another one is refused."""
    with pytest.raises(ValueError, match="id"):
        write_meta(private=True, user_acl=[bad])


# The runtime's rules, one by one: the model that the tests above rely on.


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ("", Meta()),
        (" FORMAT \t: squashfs \r\nno colon\n#ENV: A\n\nWORKDIR: /a:b", ("squashfs", "/a:b")),
        ("FORMAT: Squashfs", ("INVALID", None)),
        ("FORMAT: xfs\nFORMAT: ext4", ("ext4", None)),
        ("WORKDIR: /a\nWORKDIR: /b", ("VFS", "/b")),
        ("WORKDIR: /x\\\nFORMAT: xfs\n", ("VFS", "/x FORMAT: xfs")),
        ("WORKDIR: /x\\ \n /y\\\nz", ("VFS", "/x /y z")),
        ("WORKDIR: /x\\", ("VFS", "/x WORKDIR")),
        ("WORKDIR: /x\\\n", ("VFS", "/x WORKDIR")),
        ("WORKDIR: /x\0y", ("VFS", "/x")),
        ("VOLUME: /v", Meta()),
        ("USER: me\nENV: \nENV: A=1", Meta(env=("", "A=1"), warnings=["USER"])),
        ("ENTRY: ['a', junk 'b' ]", Meta(entry=("a", "b"))),
        ("ENTRY: [u'a', u'\\n']", Meta(entry=("a", "\\n"))),
        ("ENTRY: ['a', \"it's\", \"he's\"]", Meta(entry=("a", 's", "he'))),
        ("CMD: /bin/sh -c x", Meta(cmd=("/bin/sh -c x",))),
        ('CMD: ["a"]', Meta(cmd=('["a"]',))),
        ("CMD: []", Meta(cmd=("[]",))),
        ("USERACL:\nGROUPACL: 1, x, 2 ,", Meta(user_acl=(), group_acl=(1, 2))),
        ("USERACL: -1,4294967297", Meta(user_acl=(4294967295, 1))),
        ("USERACL: 1\nENV: A=1\nUSERACL: 5", Meta(env=("A=1",), user_acl=(5,))),
    ],
)
def test_rules_of_the_runtime(content: str, read: Meta | tuple[str, str | None]) -> None:
    """The reader has the runtime's rules, its faults included."""
    expected = read if isinstance(read, Meta) else Meta(format=read[0], workdir=read[1])
    assert read_meta(content.encode()) == expected


@pytest.mark.parametrize(
    "content",
    [
        "ENTRY: ['a'",
        "ENTRY: ['a', \"it's\"]",
        "USERACL: [1]",
        "GROUPACL: None",
        "USERACL: " + ",".join(["1"] * 1001),
    ],
)
def test_files_that_make_the_runtime_give_up(content: str) -> None:
    """A malformed list or ACL makes the image unusable."""
    with pytest.raises(MetaRejected):
        read_meta(content.encode())


@given(st.binary(max_size=60))
def test_reader_takes_any_bytes(content: bytes) -> None:
    """No bytes break the reader itself."""
    try:
        read_meta(content)
    except MetaRejected as error:
        assert str(error)  # noqa: PT017
