"""Sparse files of GNU tar, and impossible maps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from shiftergw.errors import LayerInvalid
from shiftergw.oci.header import BLOCK, END, header, padding
from shiftergw.oci.sparse import data_extents
from tests.oci.layers import contents, index_tar, plan_layers, stream_plan
from tests.oci.test_extended import record
from tests.parts import need

FORMATS = {
    "old GNU": ["--format=gnu"],
    "PAX 0.0": ["--format=posix", "--sparse-version=0.0"],
    "PAX 0.1": ["--format=posix", "--sparse-version=0.1"],
    "PAX 1.0": ["--format=posix", "--sparse-version=1.0"],
}


def sparse_file(path: Path, pieces: int, tail: int) -> bytes:
    """Write a file with holes between `pieces` and a hole of `tail` bytes; return its bytes."""
    with path.open("wb") as file:
        for n in range(pieces):
            file.seek(n * 65536)
            file.write(b"piece %d" % n * 1000)
        file.truncate(pieces * 65536 + tail)
    return path.read_bytes()


@pytest.mark.parametrize("pieces", [0, 1, 3, 60])
@pytest.mark.parametrize("kind", FORMATS)
def test_sparse_files_are_converted_to_plain_data(tmp_path: Path, kind: str, pieces: int) -> None:
    """All formats of GNU tar, few and many pieces: name, size and bytes are right."""
    data = sparse_file(tmp_path / "holes", pieces, 12345)
    (tmp_path / "after").write_bytes(b"after")
    argv = [
        need("tar"),
        "--sparse",
        *FORMATS[kind],
        "-C",
        str(tmp_path),
        "-cf",
        "-",
        "holes",
        "after",
    ]
    tar = subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
    assert len(tar) < len(data)
    plan, layers = plan_layers(tmp_path, tar)
    assert contents(stream_plan(plan, layers)) == {"holes": data, "after": b"after"}
    assert plan.report.size == len(data) + 5


def old_gnu(
    pairs: list[tuple[int, int]], size: int, data_size: int, has_extension: bool = False
) -> bytes:
    """Return the header of an old GNU sparse entry."""
    block = bytearray(header(b"f", 0o644, 0, b"S", data_size))
    for n, (offset, length) in enumerate(pairs):
        block[386 + 24 * n : 410 + 24 * n] = b"%011o\0%011o\0" % (offset, length)
    block[482] = has_extension
    block[483:495] = b"%011o\0" % size
    block[148:156] = b"%06o\0 " % sum(block[:148] + b" " * 8 + block[156:])
    return bytes(block)


def pax(records: dict[bytes, bytes], data: bytes, name: bytes = b"f") -> bytes:
    """Return a PAX entry with these records of `GNU.sparse.`."""
    body = b"".join(record(b"GNU.sparse." + key, value) for key, value in records.items())
    pax_header = header(b"x", 0o644, 0, b"x", len(body)) + body + padding(len(body))
    return pax_header + header(name, 0o644, 0, b"0", len(data)) + data + padding(len(data)) + END


VERSION = {b"major": b"1", b"minor": b"0"}
BLOCK_OF_ONES = b"1\n" * 256

IMPOSSIBLE = {
    "overlap": old_gnu([(0, 512), (256, 512)], 4096, 1024) + bytes(1024) + END,
    "descending": old_gnu([(1024, 512), (0, 512)], 4096, 1024) + bytes(1024) + END,
    "beyond the file": old_gnu([(0, 512), (4096, 512)], 4096, 1024) + bytes(1024) + END,
    "has_extension than is stored": old_gnu([(0, 1024)], 4096, 512) + bytes(1024) + END,
    "endless extensions": old_gnu([], 0, 0, has_extension=True)
    + (bytes(504) + b"\1" + bytes(7)) * 2050,
    "cut extension": old_gnu([], 0, 0, has_extension=True) + bytes(100),
    "odd map": pax({b"size": b"9", b"map": b"0,1,2"}, b"x"),
    "no size": pax({b"map": b"0,1"}, b"x"),
    "no real size": pax(VERSION, b"1\n0\n1\n" + bytes(506)),
    "unknown version": pax({b"major": b"2", b"minor": b"0", b"realsize": b"1"}, bytes(512)),
    "no minor version": pax({b"major": b"1", b"realsize": b"1"}, bytes(512)),
    "no number": pax({b"size": b"9", b"map": b"0,x"}, b"x"),
    "order": pax({b"size": b"9", b"numbytes": b"1", b"offset": b"0"}, b"x"),
    "map longer than the data": pax(VERSION | {b"realsize": b"9"}, b"999\n" + BLOCK_OF_ONES[:508]),
    "no count": pax(VERSION | {b"realsize": b"9"}, bytes(512)),
    "no stored map": pax(VERSION | {b"realsize": b"9"}, b""),
}


@pytest.mark.parametrize("why", IMPOSSIBLE)
def test_impossible_maps_are_rejected(why: str) -> None:
    """Overlapping pieces, wrong sizes and endless maps are errors, never a wrong file."""
    with pytest.raises(LayerInvalid):
        index_tar(IMPOSSIBLE[why])


def test_a_hole_alone_needs_no_data() -> None:
    """A file that consists of one hole has its size, and no data in the layer."""
    (result,) = index_tar(old_gnu([(4096, 0)], 4096, 0) + END)
    assert (result.size, result.sparse) == (4096, ())


def test_the_map_before_the_data_is_skipped() -> None:
    """PAX 1.0: the data starts after the map, and the entry has the real name."""
    records = VERSION | {b"realsize": b"1500", b"name": b"real"}
    data = b"1\n1000\n500\n".ljust(BLOCK, b"\0") + os.urandom(500)
    (result,) = index_tar(pax(records, data, name=b"GNUSparseFile.1/f"))
    assert (result.parent, result.name, result.size) == (b"", b"real", 1500)
    assert result.sparse == ((1000, 500),)
    assert result.offset % BLOCK == 0


@pytest.mark.parametrize(
    ("pieces", "size", "extents"),
    [
        ((), 100, []),
        (((0, 1),), 1, [(0, 1)]),
        (((0, 1),), 100, [(0, 10)]),
        (((9, 2),), 100, [(0, 20)]),
        (((0, 1), (5, 1)), 100, [(0, 10)]),
        (((0, 1), (10, 1)), 100, [(0, 20)]),
        (((0, 1), (20, 1)), 100, [(0, 10), (20, 30)]),
        (((12, 30), (41, 2)), 100, [(10, 50)]),
        (((95, 1),), 97, [(90, 97)]),
        (((10, 10),), 97, [(10, 20)]),
    ],
)
def test_blocks_with_data(
    pieces: tuple[tuple[int, int], ...], size: int, extents: list[tuple[int, int]]
) -> None:
    """Runs of blocks are as long as they can be, and the last block may be partial."""
    assert list(data_extents(pieces, size, 10)) == extents
