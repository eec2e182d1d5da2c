"""Packs on the disk: what is in place is used, and what is damaged is made again."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.build import pack_files, written_pack
from shiftergw.build.pack_files import (
    PackFiles,
    find_pack,
    is_pack_expected,
    pack_groups,
    remove_abandoned_parts,
)
from shiftergw.build.pack_measures import measure
from shiftergw.build.pack_places import last_uses
from shiftergw.build.pack_sidecar import read_head
from shiftergw.build.written_pack import install_pack, read_written_pack
from shiftergw.errors import ConversionFailed
from shiftergw.model.images import Digest
from shiftergw.oci.compression import StopRequested
from shiftergw.oci.tar import LayerIndex
from shiftergw.plumbing.locks import tried_lock
from shiftergw.plumbing.threads import Threads
from tests.build.packing import PackSite, files_of
from tests.images import tar_of
from tests.plumbing.bad_inodes import bad_inode

TAR = tar_of({"a": b"1" * 5000, "d/b": b"2"})


@pytest.fixture
def files(tmp_path: Path, threads: Threads) -> PackFiles:
    """Return the files of a pack that exists."""
    packs = PackSite(tmp_path, threads)
    layer = packs.layer(TAR)
    pytest_twisted.blockon(Deferred.fromCoroutine(packs.pack(layer)))
    return packs.packer().files(layer.digest)


def flip(path: Path, position: int, keep_time: bool = False, mask: int = 1) -> None:
    """Change bits of a byte of a file, from the end if `position` is negative."""
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def install(files: PackFiles, index: LayerIndex, digests: Sequence[bytes]) -> None:
    """Put the pack with these contents in its place."""
    install_pack(read_written_pack(files, index, digests, Event()), Event())


def test_a_pack_is_found(files: PackFiles) -> None:
    """The pack has its contents, its digests, and the `diff_id` that was proven."""
    pack = find_pack(files, Event())
    assert pack is not None
    assert files_of(pack) == {b"a": b"1" * 5000, b"d/b": b"2"}
    assert (pack.size, pack.diff_id) == (files.pack.stat().st_size, Digest.of(TAR))


def test_files_are_private(files: PackFiles) -> None:
    """Other users of the machine read neither the pack, nor its sidecar, nor their directory."""
    paths = (files.pack, files.sidecar, files.pack.parent)
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o600, 0o600, 0o700]


def replace_by_directory(path: Path) -> None:
    """Put a directory in the place of a file."""
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[PackFiles], object]] = {
    "no sidecar": lambda files: files.sidecar.unlink(),
    "no pack": lambda files: files.pack.unlink(),
    "empty sidecar": lambda files: files.sidecar.write_bytes(b""),
    "short sidecar": lambda files: os.truncate(files.sidecar, files.sidecar.stat().st_size - 1),
    "another version": lambda files: flip(files.sidecar, 7, mask=4),
    "earlier version": lambda files: flip(files.sidecar, 7, mask=3),
    "digest of the sidecar": lambda files: flip(files.sidecar, 8),
    "length in the sidecar": lambda files: flip(files.sidecar, 43),
    "end of the sidecar": lambda files: flip(files.sidecar, -1),
    "sidecar is a directory": lambda files: replace_by_directory(files.sidecar),
    "superblock": lambda files: flip(files.pack, 3),
    "data": lambda files: flip(files.pack, 110),
    "padding": lambda files: flip(files.pack, -1),
    "short pack": lambda files: os.truncate(files.pack, 4000),
    "empty pack": lambda files: os.truncate(files.pack, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pack_is_none(files: PackFiles, damage: str) -> None:
    """Whatever is damaged or missing, the pack has to be made again."""
    DAMAGES[damage](files)
    assert find_pack(files, Event()) is None


def test_a_pack_with_another_time_is_hashed(files: PackFiles) -> None:
    """A file with its old bytes and a new time is used; the hash of a large one can be stopped."""
    os.utime(files.pack, ns=(0, 0))
    stop = Event()
    stop.set()
    with pytest.raises(StopRequested):
        find_pack(files, stop)
    assert find_pack(files, Event()) is not None


def test_a_restored_pack_is_hashed_once(files: PackFiles) -> None:
    """A backup may keep no fractions of seconds; the hash proves the file, which gets its time."""
    time = files.pack.stat().st_mtime_ns
    os.utime(files.pack, (1e9, 1e9))
    assert not is_pack_expected(files, [None])
    assert find_pack(files, Event()) is not None
    assert files.pack.stat().st_mtime_ns == time
    assert is_pack_expected(files, [None])


def test_a_pack_that_is_written_while_it_is_hashed(
    files: PackFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not get the time that would prove its bytes."""

    def measure_and_write(*arguments: Any) -> Any:
        measures = measure(*arguments)
        flip(files.pack, 110)
        return measures

    os.utime(files.pack, (1e9, 1e9))
    monkeypatch.setattr(pack_files, "measure", measure_and_write)
    assert find_pack(files, Event()) is not None
    assert not is_pack_expected(files, [None])


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_the_path_of_a_pack_names_its_other_files(tmp_path: Path, algorithm: str) -> None:
    """Other files with the same suffix are no packs."""
    digest = Digest(algorithm, hashlib.new(algorithm).hexdigest())
    files = PackFiles(tmp_path, digest, "0" * 12)
    same_files = PackFiles.of_pack(files.pack)
    assert same_files is not None
    assert (same_files.pack, same_files.sidecar) == (files.pack, files.sidecar)
    assert PackFiles.of_pack(tmp_path / f"{digest.hex}.pack") is None


def test_an_untouched_file_is_not_read(files: PackFiles) -> None:
    """Size and time prove a file, so that a large pack is used at once."""
    flip(files.pack, 110, keep_time=True)
    assert find_pack(files, Event()) is not None


def test_a_number_without_content_is_refused(files: PackFiles) -> None:
    """An index that names more contents than there are digests is damaged."""
    pack = find_pack(files, Event())
    assert pack is not None
    files.pack.rename(files.part)
    with pytest.raises(ConversionFailed, match="damaged pack") as caught:
        install(files, pack.index, pack.digests[:1])
    assert caught.value.detail == "4 inodes, not 3"
    pack.index.entries[-1].number = 2
    install(files, pack.index, pack.digests)
    assert find_pack(files, Event()) is None


def test_a_failed_sidecar_leaves_no_pack(files: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack whose sidecar cannot be written is removed."""
    pack = find_pack(files, Event())
    assert pack is not None
    files.pack.rename(files.part)

    def fail(_: Path, __: bytes) -> None:
        raise OSError("no")

    monkeypatch.setattr(written_pack, "write_private", fail)
    with pytest.raises(OSError, match="no"):
        install(files, pack.index, pack.digests)
    assert not files.pack.exists()


@pytest.mark.parametrize("lock", ["lock", "early_lock"])
def test_a_pack_that_is_being_made_is_not_removed(files: PackFiles, lock: str) -> None:
    """Neither the sweep nor the lack of room takes the file of a process with one of the locks."""
    files.pack.rename(files.part)
    files.sidecar.unlink()
    groups = pack_groups(files.pack.parent)
    with tried_lock(getattr(files, lock)):
        assert groups.sweep(math.inf) == 0
        assert not any(group.remove() for group in groups.list_removable())
        assert files.part.exists()
    assert groups.sweep(math.inf) == 1
    assert list(files.pack.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("digest", "key"),
    [("../" * 21 + "a", "0" * 12), ("0" * 64, "../../../key"), ("0" * 63, "0" * 12)],
)
def test_names_are_checked(tmp_path: Path, digest: str, key: str) -> None:
    """What is no digest or no key becomes no path."""
    with pytest.raises(ValueError, match="names no pack"):
        PackFiles(tmp_path, Digest("sha256", digest), key)


def test_an_index_without_digest_is_no_pack(files: PackFiles) -> None:
    """A pack is never written without the digest that was proven."""
    files.pack.rename(files.part)
    with pytest.raises(ConversionFailed):
        install(files, LayerIndex(), [])


def test_the_beginning_of_an_earlier_sidecar_is_read(files: PackFiles) -> None:
    """A pack of an earlier version is not used, but the scrub does not take it for damaged."""
    head = read_head(files.sidecar)
    flip(files.sidecar, 7, mask=3)
    assert files.sidecar.read_bytes().startswith(b"sgwpack\1")
    assert read_head(files.sidecar) == head


def test_a_damaged_inode_spoils_no_other_pack(files: PackFiles) -> None:
    """Other packs count as used, and what was left of them is removed."""
    bad_sidecar = files.pack.with_name(f"{'0' * 64}-{'1' * 12}.index")
    parts = [bad_sidecar.with_suffix(".part"), files.part]
    for path in (bad_sidecar, *parts):
        path.touch()
    with bad_inode(bad_sidecar):
        assert list(last_uses(files.pack.parent)) == [files.pack.stem.partition("-")[0]]
    with bad_inode(parts[0]):
        assert remove_abandoned_parts(files.pack.parent) == 1
    assert [part.exists() for part in parts] == [True, False]
