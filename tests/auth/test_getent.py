"""Parsing the output of `getent`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.auth.getent import parse
from shiftergw.errors import Unavailable
from tests.auth.listings import SYSTEM


def test_users_and_groups() -> None:
    """Users and groups are listed by number and by name; of two lines the first counts."""
    listing = parse(SYSTEM)
    assert listing.users == {
        0: ("root", 0),
        2001: ("alice", 2100),
        2002: ("DOM\\bob b (3)", 2100),
    }
    assert listing.uids == {"root": 0, "alice": 2001, "DOM\\bob b (3)": 2002, "toor": 0}
    assert listing.groups == {0: "root", 2100: "users", 2300: "lab", 2301: "lab2"}
    assert listing.groups_of("alice", 2100) == {2100, 2300, 2301}
    assert listing.groups_of("alice", 5) == {5, 2100, 2300, 2301}
    assert listing.groups_of("stranger", 5) == {5}


def test_this_machine() -> None:
    """The databases of this machine are a valid listing, with root in it."""
    passwd, group = Path("/etc/passwd").read_bytes(), Path("/etc/group").read_bytes()
    assert parse(passwd + group).users[0] == ("root", 0)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"users:x:2100:\n",
        SYSTEM[:-1],
        SYSTEM + b"\n",
        SYSTEM + b"# comment\n",
        SYSTEM + b":x:1:1:::\n",
        SYSTEM + b"a:s3cret:-1:1:::\n",
        SYSTEM + b"a:s3cret:4294967295:1:::\n",
        SYSTEM + b"a:s3cret:1:4294967295:::\n",
        SYSTEM + b"a:s3cret::1:::\n",
        SYSTEM + b"a:s3cret:" + "٣".encode() + b":1:::\n",
        SYSTEM + b"a:s3cret:1:1::\n",
        SYSTEM + b"a:s3cret:one:b\n",
        SYSTEM + b"a\0:s3cret:1:1:::\n",
        SYSTEM + b"a\r:s3cret:1:1:::\n",
        SYSTEM + b"a" * 300 + b":s3cret:1:1:::\n",
        SYSTEM + b"ssh: connect to host login1: No route\n",
    ],
    ids=lambda output: repr(output[-30:]),
)
def test_invalid_listings(output: bytes) -> None:
    """Any other line refuses the whole listing; the error has its number and not its content."""
    with pytest.raises(Unavailable) as caught:
        parse(output)
    assert caught.value.detail
    assert "s3cret" not in caught.value.detail


@given(st.binary())
def test_any_output(output: bytes) -> None:
    """Whatever a command prints is a valid listing or raises `Unavailable`."""
    with suppress(Unavailable):
        assert parse(output).users
