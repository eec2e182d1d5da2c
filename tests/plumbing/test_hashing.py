"""Files are hashed in pieces, in part or as a whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from shiftergw.plumbing.hashing import hash_file

CONTENT = bytes(range(256)) * 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a file with `CONTENT`."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("piece_bytes", [1000, 2560, 4096])
def test_the_whole_file(path: Path, algorithm: str, piece_bytes: int) -> None:
    """Size and digest are those of the content, whatever the size of the pieces."""
    digest = hashlib.new(algorithm, CONTENT).hexdigest()
    assert hash_file(path, algorithm, piece_bytes=piece_bytes) == (len(CONTENT), digest)


@pytest.mark.parametrize("length", [0, 1, 1000, 1001, 10_000])
def test_the_first_bytes(path: Path, length: int) -> None:
    """`length` limits the hashed bytes; a shorter file is hashed to its end."""
    expected = CONTENT[:length]
    assert hash_file(path, length=length, piece_bytes=1000) == (
        len(expected),
        hashlib.sha256(expected).hexdigest(),
    )


def test_a_descriptor_keeps_its_position(path: Path) -> None:
    """A descriptor is hashed from the start of its file, and others may read it meanwhile."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.lseek(descriptor, 7, os.SEEK_SET)
        assert hash_file(descriptor)[1] == hashlib.sha256(CONTENT).hexdigest()
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 7
    finally:
        os.close(descriptor)


def test_stop(path: Path) -> None:
    """Hashing stops before the next piece, and passes on errors of `should_stop`."""
    answers = iter([False, None, True])
    size, _ = hash_file(path, should_stop=lambda: next(answers), piece_bytes=1000)
    assert size == 2000
    with pytest.raises(ZeroDivisionError):
        hash_file(path, should_stop=lambda: 1 // 0)


def test_a_missing_file(tmp_path: Path) -> None:
    """The error of the operating system is raised."""
    with pytest.raises(FileNotFoundError):
        hash_file(tmp_path / "absent")
