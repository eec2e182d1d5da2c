"""The data of many files as columns: appended, combined, and stored as bytes."""

from __future__ import annotations

import pytest

from shiftergw.squashfs.columns import FileColumns
from shiftergw.squashfs.nodes import FileData

BLOCK = 4096
FILES = [
    FileData(9000, 96, 0, 5, 0, b"\1\2\0\0\3\4\0\0"),
    FileData(7, 0, 1, 20),
    FileData(BLOCK, 5000, blocks=b"\0\1\0\0"),
    FileData(2 * BLOCK, 0, sparse=2 * BLOCK - 1, blocks=bytes(8)),
]


def columns_of(files: list[FileData]) -> FileColumns:
    """Return columns of these files."""
    columns = FileColumns(BLOCK)
    for data in files:
        columns.append(data)
    return columns


def test_stored_columns_have_the_same_files() -> None:
    """Every number and every block comes back."""
    columns = FileColumns.decode(columns_of(FILES).encode())
    assert columns.block_size == BLOCK
    assert [columns[place] for place in range(len(columns))] == FILES


def test_files_of_several_packs_are_appended() -> None:
    """The blocks of the later files are found behind those of the earlier ones."""
    columns = columns_of(FILES[:2])
    upper = columns_of(FILES[2:])
    columns.extend(upper)
    columns.extend(upper)
    assert [columns[place] for place in range(len(columns))] == [*FILES, *FILES[2:]]
    assert [upper[place] for place in range(len(upper))] == FILES[2:]


def test_names_of_one_inode_share_their_blocks() -> None:
    """The sizes of the blocks are there once."""
    columns = FileColumns(BLOCK)
    for _ in range(3):
        columns.append(FILES[0], 1)
    columns.append(FILES[3])
    copy = FileColumns.decode(columns.encode())
    assert [copy[place] for place in range(4)] == [*FILES[:1] * 3, FILES[3]]
    assert len(copy.blocks) == len(FILES[0].blocks) + len(FILES[3].blocks)


@pytest.mark.parametrize("end", [0, 30, -1])
def test_columns_that_end_too_early_are_refused(end: int) -> None:
    """Bytes that are cut are not columns."""
    with pytest.raises(ValueError, match="columns of files"):
        FileColumns.decode(columns_of(FILES).encode()[:end])


def test_bytes_behind_columns_are_refused() -> None:
    """Nothing may follow them."""
    with pytest.raises(ValueError, match="columns of files"):
        FileColumns.decode(columns_of(FILES).encode() + b"x")
