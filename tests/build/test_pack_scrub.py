"""Packs are hashed now and then: slowly, one at a time, and damaged ones are removed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from shiftergw.build import pack_scrub, pack_sidecar
from shiftergw.build.pack_files import PackFiles, pack_groups
from shiftergw.build.pack_places import PackPlaces
from shiftergw.build.pack_scrub import BYTES_PER_SECOND, PackScrub
from shiftergw.errors import ConversionFailed
from shiftergw.plumbing.locks import tried_lock
from shiftergw.plumbing.threads import Threads
from tests.build.packing import PackSite
from tests.build.parts import open_descriptors
from tests.build.test_pack_files import flip
from tests.images import tar_of
from tests.work.waiting import until

PACK_TIME = 1_000_000.0
DUE = PACK_TIME + 1


class ScrubSite:
    """Two packs that are due, the second of which is older, and a scrub whose pauses are short.

    `pauses` are the seconds that it would have waited.
    """

    def __init__(self, directory: Path, threads: Threads) -> None:
        """Begin without packs."""
        self._site = PackSite(directory, threads)
        self.directory = self._site.directory
        self.lock = directory / "scrub.lock"
        self.clock: Any = Clock()
        places = PackPlaces(self.directory, lambda: [self.directory])
        self._scrub = PackScrub(places, threads, self.clock, self.lock)
        self.packs: list[PackFiles] = []
        self.pauses: list[float] = []

    async def make_packs(self) -> None:
        """Make the packs."""
        for age, content in enumerate((b"1" * 5000, b"2" * 5000)):
            layer = self._site.layer(tar_of({"a": content}))
            await self._site.pack(layer)
            files = self._site.packer().files(layer.digest)
            os.utime(files.pack, (PACK_TIME - age, PACK_TIME - age))
            self.packs.append(files)

    def start(self, before: float = DUE) -> Deferred[int]:
        """Begin to scrub, with real pauses."""
        return Deferred.fromCoroutine(self._scrub.scrub(before))

    async def scrub(self, before: float = DUE) -> int:
        """Scrub without waiting; return how many packs were damaged."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pack_scrub, "pause", self._record_pause)
            return await self.start(before)

    async def _record_pause(self, seconds: float, _clock: Any) -> None:
        self.pauses.append(seconds)

    def marks(self) -> list[bool]:
        """Return which packs were found sound."""
        return [files.scrub_mark.exists() for files in self.packs]


@pytest.fixture
def site(tmp_path: Path, threads: Threads) -> ScrubSite:
    """Return packs that are due."""
    site = ScrubSite(tmp_path, threads)
    pytest_twisted.blockon(Deferred.fromCoroutine(site.make_packs()))
    return site


@pytest_twisted.ensureDeferred
async def test_packs_are_read_slowly(site: ScrubSite) -> None:
    """The bytes in a second are bounded; a sound pack is due again only after some time."""
    assert await site.scrub() == 0
    assert site.marks() == [True, True]
    size = sum(path.stat().st_size for files in site.packs for path in (files.pack, files.sidecar))
    assert sum(site.pauses) == pytest.approx(size / BYTES_PER_SECOND)
    assert site.packs[0].scrub_mark.stat().st_mode & 0o777 == 0o600
    site.pauses.clear()
    assert await site.scrub() == 0
    assert site.pauses == []
    os.utime(site.packs[0].scrub_mark, (PACK_TIME, PACK_TIME))
    assert await site.scrub() == 0
    assert sum(site.pauses) < 0.6 * size / BYTES_PER_SECOND
    assert not site.lock.exists()


@pytest_twisted.ensureDeferred
async def test_the_pack_that_was_hashed_longest_ago_comes_first(site: ScrubSite) -> None:
    """A stop in the middle leaves nothing open, and the next scrub goes on with the rest."""
    before = open_descriptors()
    scrubbing = site.start()

    def is_marked() -> bool:
        site.clock.advance(0.0001)
        return any(site.marks())

    await until(is_marked)
    assert site.marks() == [False, True]
    scrubbing.cancel()
    with pytest.raises(CancelledError):
        await scrubbing
    await until(lambda: open_descriptors() == before)
    assert not site.lock.exists()
    site.pauses.clear()
    await site.scrub()
    assert site.marks() == [True, True]


DAMAGES: dict[str, Callable[[PackFiles], object]] = {
    "data": lambda files: flip(files.pack, 110, keep_time=True),
    "superblock": lambda files: flip(files.pack, 3, keep_time=True),
    "padding": lambda files: flip(files.pack, -1, keep_time=True),
    "short pack": lambda files: os.truncate(files.pack, 4000),
    "sidecar": lambda files: flip(files.sidecar, -1, keep_time=True),
    "empty sidecar": lambda files: files.sidecar.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest_twisted.ensureDeferred
async def test_damaged_packs_are_removed(site: ScrubSite, damage: str) -> None:
    """Also those whose size and time are as before; the log names the file, and others stay."""
    DAMAGES[damage](site.packs[1])
    os.utime(site.packs[1].pack, (PACK_TIME, PACK_TIME))
    with capturedLogs() as log:
        assert await site.scrub() == 1
    path = site.packs[1].pack
    texts = [formatEvent(event) or "" for event in log]
    assert [text for text in texts if f"the pack {path} is damaged" in text]
    assert [files.exist() for files in site.packs] == [True, False]
    assert len(list(site.directory.iterdir())) == 3


@pytest_twisted.ensureDeferred
async def test_a_scrub_of_another_process(site: ScrubSite) -> None:
    """One process reads the packs of a machine; the others leave it at that."""
    with tried_lock(site.lock):
        assert await site.scrub() == 0
    assert site.marks() == [False, False]


@pytest_twisted.ensureDeferred
async def test_a_pack_that_is_being_made_again(site: ScrubSite) -> None:
    """The process with its lock decides what becomes of it."""
    flip(site.packs[0].pack, 110)
    os.utime(site.packs[0].pack, (PACK_TIME, PACK_TIME))
    with tried_lock(site.packs[0].lock):
        assert await site.scrub() == 0
    assert site.packs[0].exist()


@pytest_twisted.ensureDeferred
async def test_a_pack_that_is_removed_meanwhile(
    site: ScrubSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not damaged, and no mark is left of it."""

    async def remove(_seconds: float, _clock: Any) -> None:
        site.packs[1].pack.unlink(missing_ok=True)

    monkeypatch.setattr(site, "_record_pause", remove)
    assert await site.scrub() == 0
    assert site.marks() == [True, False]


@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE])
@pytest_twisted.ensureDeferred
async def test_a_pack_that_cannot_be_read(site: ScrubSite, code: int) -> None:
    """The log names it, the others are hashed, and it is tried again when they are due again."""
    read_head, unreadable = pack_sidecar.read_head, site.packs[1]

    def fail(path: Path) -> Any:
        if path == unreadable.sidecar:
            raise OSError(code, os.strerror(code), str(path))
        return read_head(path)

    site.clock.advance(DUE)
    with pytest.MonkeyPatch.context() as patch, capturedLogs() as log:
        patch.setattr(pack_sidecar, "read_head", fail)
        assert await site.scrub() == 0
    assert site.marks() == [True, False]
    texts = [formatEvent(event) or "" for event in log]
    assert [text for text in texts if f"the pack {unreadable.pack} could not be read" in text]
    assert await site.scrub() == 0
    assert site.marks() == [True, False]
    assert await site.scrub(DUE + 1) == 0
    assert site.marks() == [True, True]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("suffix", [".pack", ".index"])
@pytest_twisted.ensureDeferred
async def test_a_pack_whose_inode_cannot_be_read(site: ScrubSite, suffix: str, code: int) -> None:
    """The log names it once, and the other pack is hashed."""
    stat, unreadable = Path.stat, site.packs[1].pack.with_suffix(suffix)

    def fail(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path == unreadable:
            raise OSError(code, os.strerror(code), str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    site.clock.advance(DUE)
    with pytest.MonkeyPatch.context() as patch, capturedLogs() as log:
        patch.setattr(Path, "stat", fail)
        assert await site.scrub() == 0
        assert site.marks() == [True, False]
        assert await site.scrub() == 0
    texts = [formatEvent(event) or "" for event in log]
    assert len([text for text in texts if "could not be read" in text]) == 1
    assert await site.scrub(DUE + 1) == 0
    assert site.marks() == [True, True]


@pytest_twisted.ensureDeferred
async def test_a_failure_that_says_nothing_of_the_disk(
    site: ScrubSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without descriptors removes no pack; the error ends the round."""

    def fail(_: Path) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(pack_sidecar, "read_head", fail)
    with pytest.raises(ConversionFailed, match="could not read or write its own files"):
        await site.scrub()
    assert [files.exist() for files in site.packs] == [True, True]


@pytest_twisted.ensureDeferred
async def test_a_scrub_is_no_use(site: ScrubSite) -> None:
    """A pack that no pull uses is swept in time, however often it is hashed."""
    await site.scrub()
    for files in site.packs:
        os.utime(files.sidecar, (PACK_TIME, PACK_TIME))
    assert pack_groups(site.directory).sweep(DUE) == 2
    assert list(site.directory.iterdir()) == []
