"""PAX records, complete and damaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import LayerInvalid
from shiftergw.oci.extended import ExtendedHeader, records


def record(key: bytes, value: bytes) -> bytes:
    """Return a PAX record; its length includes its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


KEYS = st.binary(min_size=1, max_size=40).filter(lambda key: b"=" not in key)


@given(st.lists(st.tuples(KEYS, st.binary(max_size=300))))
def test_records_of_any_bytes_read_back(pairs: list[tuple[bytes, bytes]]) -> None:
    """Values can contain blanks, newlines, equal signs, and bytes that are not UTF-8."""
    assert list(records(b"".join(record(*pair) for pair in pairs))) == pairs


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"12",
        b" path=a\n",
        b"0 path=a\n",
        b"2 path=a\n",
        b"-9 path=a\n",
        b"99 path=a\n",
        b"9 path=a\nrest",
        b"9 path=ab",
        b"7 path\n",
        b"111111111111111111111111111 path=a\n",
    ],
)
def test_damaged_records_are_rejected(body: bytes) -> None:
    """A wrong length, or a line that is not a record, is an error."""
    with pytest.raises(LayerInvalid, match="PAX"):
        list(records(body))


def test_the_relevant_values_are_read() -> None:
    """Path, target, size, time without its fraction, and the presence of xattrs."""
    header = ExtendedHeader()
    body = record(b"path", b"\xff") + record(b"linkpath", b"t") + record(b"size", b"9000000000")
    body += record(b"mtime", b"1700000000.999") + record(b"SCHILY.xattr.user.a", b"\0=\n")
    header.read(b"x", body + record(b"comment", b"nothing"))
    assert (header.path, header.target, header.size) == (b"\xff", b"t", 9_000_000_000)
    assert (header.mtime, header.xattrs) == (1_700_000_000, True)


@pytest.mark.parametrize(("text", "time"), [(b"-1.5", -1), (b"0.9", 0), (b".5", 0), (b"7", 7)])
def test_times_lose_their_fraction(text: bytes, time: int) -> None:
    """Times can be before 1970 and between seconds."""
    header = ExtendedHeader()
    header.read(b"x", record(b"mtime", text))
    assert header.mtime == time


def test_an_empty_value_deletes_the_record() -> None:
    """POSIX: a record without a value deletes earlier ones."""
    header = ExtendedHeader()
    keys = (b"path", b"linkpath", b"size", b"mtime")
    header.read(b"x", b"".join(record(key, b"1") + record(key, b"") for key in keys))
    assert header == ExtendedHeader()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"size", b"-1"),
        (b"size", b"1e3"),
        (b"size", b"9" * 30),
        (b"mtime", b"yesterday"),
        (b"path", b"a\0b"),
        (b"linkpath", b"a\0b"),
        (b"GNU.sparse.name", b"a\0b"),
    ],
)
def test_impossible_values_are_rejected(key: bytes, value: bytes) -> None:
    """Signed sizes, times that are not numbers, and names with a NUL are errors."""
    with pytest.raises(LayerInvalid):
        ExtendedHeader().read(b"x", record(key, value))
