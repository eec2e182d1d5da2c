"""Headers written and read, by our own reader and by Python's."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftergw.errors import LayerInvalid
from shiftergw.oci.header import (
    BLOCK,
    END,
    FIELDS,
    HeaderTemplate,
    has_valid_checksum,
    header,
    number,
    padding,
)
from shiftergw.oci.tar import DIRECTORY, HARDLINK
from shiftergw.oci.tree import REGULAR, SYMLINK
from tests.oci.layers import index_tar

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."}
)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map(b"/".join)
TARGETS = st.one_of(PATHS, st.binary(min_size=1, max_size=4095).filter(lambda t: b"\0" not in t))
MODES = st.integers(0, 0o7777)
TIMES = st.integers(0, 2**32 - 1)

NUMBERS = {
    b"0000644\0": 0o644,
    b"   644 \0": 0o644,
    b"644 \0": 0o644,
    b"00000644": 0o644,
    bytes(8): 0,
    b"        ": 0,
    b"\x80" + (2**40).to_bytes(11, "big"): 2**40,
    b"\xff" * 12: -1,
    b"\xff" * 11 + b"\xfe": -2,
}


@pytest.mark.parametrize("field", NUMBERS)
def test_numbers_in_every_notation_are_read(field: bytes) -> None:
    """Octal with blanks or NULs, empty for zero, and signed base 256."""
    assert number(field) == NUMBERS[field]


@pytest.mark.parametrize(
    "field", [b"0000x44\0", b"0000899\0", b"-000644\0", b"0_64\0\0\0\0", b"+1 \0"]
)
def test_invalid_numbers_are_rejected(field: bytes) -> None:
    """An invalid number is an error."""
    with pytest.raises(LayerInvalid, match="number"):
        number(field)


@given(st.binary(min_size=BLOCK, max_size=BLOCK))
def test_the_checksum_is_the_sum_of_the_bytes(block: bytes) -> None:
    """The fast sum equals the plain one for any block, unsigned and signed."""
    around = block[:148] + b" " * 8 + block[156:]
    unsigned_sum = sum(around)
    assert has_valid_checksum(block, b"%06o\0 " % unsigned_sum)
    assert not has_valid_checksum(block, b"%06o\0 " % (unsigned_sum + 1))
    signed_sum = sum(byte - 256 if byte > 127 else byte for byte in around)
    field = (
        b"%06o\0 " % signed_sum if signed_sum >= 0 else signed_sum.to_bytes(8, "big", signed=True)
    )
    assert has_valid_checksum(block, field)


@given(PATHS, MODES, TIMES, st.integers(0, 2**62))
def test_a_file_reads_back(path: bytes, mode: int, mtime: int, size: int) -> None:
    """`tarfile` reads the same name, mode, time and size, up to exabytes."""
    blocks = header(path, mode, mtime, b"0", size)
    info = tarfile.TarInfo.frombuf(blocks[-BLOCK:], "utf-8", "surrogateescape")
    assert len(blocks) % BLOCK == 0
    assert (info.size, info.mode, info.mtime) == (size, mode, mtime)
    fields = FIELDS.unpack(blocks[-BLOCK:])
    assert (number(fields[2]), number(fields[3])) == (size, mtime)


@given(PATHS, MODES, TIMES, TARGETS, st.sampled_from([b"1", b"2"]))
def test_names_and_targets_read_back(
    path: bytes, mode: int, mtime: int, target: bytes, kind: bytes
) -> None:
    """`tarfile` and our reader read the same names and targets, of any bytes and length."""
    archive = header(path, mode, mtime, kind, target=target) + END
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        (info,) = tar
    assert info.name.encode("utf-8", "surrogateescape").rstrip(b"/") == path
    assert info.linkname.encode("utf-8", "surrogateescape") == target
    (result,) = index_tar(archive)
    assert b"/".join((result.parent, result.name)).lstrip(b"/") == path
    assert (result.target, result.mode, result.mtime) == (target, mode, mtime)
    assert result.kind == (HARDLINK if kind == b"1" else SYMLINK)


@pytest.mark.parametrize("name", [b"00000/000", b"\xff" * 100])
@pytest.mark.parametrize("size", [0, 300, 8**11 - 1, 8**11, 2**63 - 1])
def test_a_template_makes_the_same_headers(name: bytes, size: int) -> None:
    """The longest name and sizes that are no octal number are no exceptions."""
    block = HeaderTemplate(len(name), 0o640).header(name, size)
    assert block == header(name, 0o640, 0, b"0", size)


def test_kinds_and_padding_read_back() -> None:
    """Data is padded to whole blocks, so that the next header is found."""
    archive = (
        header(b"d", 0o755, 7, b"5")
        + header(b"d/a", 0o644, 8, b"0", 3)
        + b"abc"
        + padding(3)
        + header(b"d/b", 0o644, 9, b"0", BLOCK)
        + bytes(BLOCK)
        + padding(BLOCK)
        + header(b"d/c", 0o600, 10, b"0")
        + END
    )
    result = [
        (e.kind, e.parent, e.name, e.mode, e.mtime, e.size, e.offset) for e in index_tar(archive)
    ]
    assert result == [
        (DIRECTORY, b"", b"d", 0o755, 7, 0, 512),
        (REGULAR, b"d", b"a", 0o644, 8, 3, 1024),
        (REGULAR, b"d", b"b", 0o644, 9, 512, 2048),
        (REGULAR, b"d", b"c", 0o600, 10, 0, 3072),
    ]
