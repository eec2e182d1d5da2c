"""The `.meta` file: the C runtime reads the values that were written, above all the ACL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import PullError
from shiftergw.model.names import ACL_LIMIT
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
def test_values_read_back_or_are_omitted(
    env: list[str],
    entry: list[str],
    cmd: list[str],
    workdir: str,
    user_acl: list[int],
    group_acl: list[int],
) -> None:
    """Each value reads back unchanged or is reported as omitted; the ACL always reads back."""
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
    result = read_meta(file.content)
    assert result.format == "squashfs"
    assert result.user_acl == (tuple(user_acl) if private else None)
    assert result.group_acl == (tuple(group_acl) if private else None)
    assert result.warnings == []
    for name, expected_value, read in (
        ("ENTRY", tuple(entry), result.entry),
        ("CMD", tuple(cmd), result.cmd),
        ("WORKDIR", workdir, result.workdir),
    ):
        assert (name in file.omissions) == bool(expected_value and read is None)
        assert read in (None, expected_value)
    settings = list(result.env)
    omitted_variables = [name for name in file.omissions if name.startswith("ENV ")]
    for variable in env:
        if settings and settings[0] == variable.rstrip(BLANKS):
            if settings.pop(0) != variable:
                assert omitted_variables.pop(0).endswith("(blanks at its end)")
        else:
            omitted_variables.pop(0)
    assert (settings, omitted_variables) == ([], [])
    assert all(name.isprintable() for name in file.omissions)


@given(st.lists(st.sampled_from([1, 2**32 - 2]), min_size=1), TEXT)
def test_no_value_opens_a_private_image(user_acl: list[int], value: str) -> None:
    """With any values of an image, the ACL is in the last lines and is read."""
    file = write_meta(
        env=[value], entry=[value], cmd=[value], workdir=value, private=True, user_acl=user_acl
    )
    users = ",".join(map(str, user_acl)).encode()
    assert file.content.endswith(b"\nUSERACL: " + users + b"\nGROUPACL: \n")
    assert read_meta(file.content).user_acl == tuple(user_acl)


def test_whole_file() -> None:
    """The complete file of a private image."""
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
    """The file of a public image has no ACL lines."""
    assert write_meta(user_acl=[1], group_acl=[2]).content == b"FORMAT: squashfs\n"


@pytest.mark.parametrize(
    ("words", "text"),
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
def test_lists(words: list[str], text: bytes | None) -> None:
    """Lists have no escapes; a list that cannot be represented is omitted completely."""
    file = write_meta(entry=words)
    assert file.content == b"FORMAT: squashfs\n" + (text or b"")
    assert file.omissions == (() if text else ("ENTRY",))
    assert read_meta(file.content).entry == (tuple(words) if text else None)


@pytest.mark.parametrize("evil", ["/x\\", "/x\\ ", "/x\nUSERACL: 5", "/x\r", "/x\0y", "\ud800"])
def test_values_that_would_break_lines(evil: str) -> None:
    """A value that would absorb or create a line is omitted and reported."""
    file = write_meta(workdir=evil, env=[f"A={evil}z\\"], private=True, user_acl=[7])
    assert file.omissions == ("WORKDIR", "ENV A")
    assert read_meta(file.content) == Meta("squashfs", user_acl=(7,), group_acl=())


def test_private_image_without_reader() -> None:
    """Such a file is never written: the runtime admits all users if both lists are empty."""
    with pytest.raises(ValueError, match="at least one reader"):
        write_meta(private=True)


@pytest.mark.parametrize("users", [True, False])
def test_longest_acl(users: bool) -> None:
    """A list of 1000 ids is read; one more would abort the runtime and is an error."""
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
    """An id that the runtime would read as another one is an error."""
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
    """The reader has the rules of the runtime, including its faults."""
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
def test_files_that_the_runtime_rejects(content: str) -> None:
    """A malformed list or ACL makes the image unusable."""
    with pytest.raises(MetaRejected):
        read_meta(content.encode())


@given(st.binary(max_size=60))
def test_the_reader_accepts_any_bytes(content: bytes) -> None:
    """No bytes make the reader fail in another way."""
    try:
        read_meta(content)
    except MetaRejected as error:
        assert str(error)  # noqa: PT017
