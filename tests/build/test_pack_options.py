"""Keys of packs: what shapes the bytes differs, and nothing else does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from shiftergw.build.pack_options import hash_tools, pack_arguments, pack_key, tools_digest
from shiftergw.errors import ConversionFailed
from shiftergw.model.build_options import SquashOptions
from shiftergw.plumbing.threads import Threads
from tests.build.parts import script
from tests.parts import need

real: Any = reactor


@pytest.mark.parametrize(
    ("members", "differs"),
    [
        ({"compressor": "zstd"}, True),
        ({"level": 6}, True),
        ({"level": None}, True),
        ({"block_size": "1M"}, True),
        ({"memory": "1G"}, False),
        ({"processors": 3}, False),
        ({"keep_setuid": True}, False),
    ],
)
def test_the_key_has_what_shapes_a_pack(members: dict[str, Any], differs: bool) -> None:
    """Compressor, level and block size do; memory, processors and modes of files do not."""
    key = pack_key(SquashOptions(), "tools")
    assert (pack_key(SquashOptions(**members), "tools") != key) == differs
    assert pack_key(SquashOptions(), "other tools") != key
    assert len(key) == 12


def test_a_level_that_changes_nothing_is_not_in_the_key() -> None:
    """Xz has no levels, so all of them share the packs."""
    keys = {pack_key(SquashOptions("xz", level), "tools") for level in (None, 5)}
    assert len(keys) == 1


def test_extra_arguments_make_no_pack() -> None:
    """Raw arguments may change more than the compression."""
    with pytest.raises(ValueError, match="extra"):
        pack_arguments(SquashOptions(extra=("-b", "1M")), Path("out"))


@pytest_twisted.ensureDeferred
async def test_the_bytes_of_the_program_are_in_the_digest(tmp_path: Path, threads: Threads) -> None:
    """A program with other bytes gives another digest, the same one in another place does not."""
    program = need("mksquashfs")
    copy, variant = tmp_path / "copy", tmp_path / "variant"
    shutil.copy(program, copy)
    shutil.copy(program, variant)
    with variant.open("ab") as file:
        file.write(b"\0")
    digests = [await tools_digest(str(p), threads, real, real) for p in (program, copy, variant)]
    assert digests[0] == digests[1] != digests[2]


@pytest_twisted.ensureDeferred
async def test_the_version_behind_a_script_is_in_the_digest(
    tmp_path: Path, threads: Threads
) -> None:
    """A script that runs another program gives another digest once that program is newer."""
    version, wrapper = tmp_path / "version", script(tmp_path / "wrapper", 'cat "${0%/*}/version"')
    digests = []
    for number in (b"4.6", b"4.6", b"4.7"):
        version.write_bytes(number)
        digests.append(await tools_digest(wrapper, threads, real, real))
    assert digests[0] == digests[1] != digests[2]


def test_the_libraries_that_compress_are_in_the_digest(tmp_path: Path) -> None:
    """The bytes of each library that the linker lists count, those of the C library do not."""
    program, compressor, library = (tmp_path / name for name in ("p", "libzstd.so.1", "libc.so.6"))
    listing = f"\tlibzstd.so.1 => {compressor} (0x7f)\n\tlibc.so.6 => {library} (0x7f)\n".encode()
    digests = []
    for content in (b"1", b"2"):
        for path in (program, compressor, library):
            path.write_bytes(content)
            digests.append(hash_tools(str(program), listing) if library.exists() else "")
    assert len(set(digests[2:])) == 3
    assert digests[4] == digests[5]


@pytest_twisted.ensureDeferred
async def test_a_program_that_cannot_be_examined(tmp_path: Path, threads: Threads) -> None:
    """Without a key there is no pack."""
    with pytest.raises(ConversionFailed, match="cannot be started"):
        await tools_digest(str(tmp_path / "none"), threads, real, real)


def test_a_library_that_cannot_be_read(tmp_path: Path) -> None:
    """A library that is gone is an error, not left out of the key."""
    with pytest.raises(FileNotFoundError):
        hash_tools(need("mksquashfs"), f"\tlibz.so.1 => {tmp_path}/libz.so.1 (0x7f)\n".encode())
