"""The memory and the scratch disk that a conversion uses, at any size of files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from isal import igzip

from shiftergw.model.build_options import BuilderName
from tests.parts import need

GIGABYTE = 10**9
PIECE = 1 << 20
LONG = os.environ.get("SHIFTERGW_LONG") == "1"
LARGEST = 200
"""MiB of memory that a worker may have while it converts one layer of a gigabyte."""


class Noise:
    """A readable stream of bytes that compress to about a half."""

    def __init__(self) -> None:
        """Repeat one piece; each second half of it is zeros."""
        self._piece = os.urandom(PIECE // 2) + bytes(PIECE // 2)

    def read(self, size: int) -> bytes:
        """Return `size` bytes."""
        return (self._piece * (size // PIECE + 1))[:size]


class Hashing:
    """Writes into a gzip file and hashes the data."""

    def __init__(self, file: BinaryIO) -> None:
        """Begin."""
        self.digest = hashlib.sha256()
        self._file = file

    def write(self, data: bytes) -> int:
        """Write and hash."""
        self.digest.update(data)
        return self._file.write(data)


def layer_of_a_gigabyte(path: Path) -> str:
    """Write a layer of ten files of 100 MB each; return its `diff_id`."""
    with igzip.open(path, "wb", compresslevel=0) as file:
        hashing = Hashing(cast("BinaryIO", file))
        with tarfile.open(fileobj=cast("BinaryIO", hashing), mode="w|") as archive:
            for number in range(10):
                info = tarfile.TarInfo(f"file{number}")
                info.size = GIGABYTE // 10
                archive.addfile(info, cast("BinaryIO", Noise()))
    return f"sha256:{hashing.digest.hexdigest()}"


@pytest.mark.parametrize(("builder", "copies"), [("whole", 1), *([("packs", 2)] if LONG else [])])
def test_a_gigabyte_takes_little_memory_and_no_unpacked_tree(
    tmp_path: Path, builder: BuilderName, copies: int
) -> None:
    """Memory stays below 200 MiB; on disk there is the result, with packs twice, and no more."""
    need("mksquashfs")
    layer = tmp_path / "layer.tar.gz"
    diff_id = layer_of_a_gigabyte(layer)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = {"compressor": "zstd", "level": 1, "builder": builder}
    request = {"options": options, "layers": [[str(layer), diff_id]]}
    converting = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.conversion", scratch],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert converting.stdin is not None
    converting.stdin.write(json.dumps(request))
    converting.stdin.close()
    assert converting.stdout is not None
    peak = 0
    while converting.poll() is None:
        names = [path for path in scratch.rglob("*") if "slots" not in path.parts]  # empty files
        assert len(names) <= 4 * copies, names
        peak = max(peak, len(names))
        try:
            converting.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    answer = json.loads(converting.stdout.read())
    converting.stdout.close()
    assert converting.returncode == 0
    assert peak > 0
    assert answer["own_rss"] < LARGEST
    size = sum(path.stat().st_size for path in scratch.rglob("*"))
    assert size <= 1.01 * copies * answer["size"]
