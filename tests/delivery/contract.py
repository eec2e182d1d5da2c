"""The promises that every `ImageDirectory` keeps.

A test class inherits `ImageDirectoryContract` and gives two fixtures: `directory`, the adapter, and
`root`, the same directory as the test sees it on this machine.
"""

# ruff: noqa: ASYNC240 - a test may look at its own files while nothing else happens

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.errors import DeliveryFailed
from shiftergw.model.records import Progress
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.ports import FileAccess, ImageDirectory, InstalledFile, Verification

ID = "0123456789abcdef" * 4
IMAGE = f"{ID}.squashfs"
META = f"{ID}.meta"
CONTENT = os.urandom(10_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

BAD_NAMES = [
    "",
    "..",
    "x.squashfs",
    f"../{IMAGE}",
    f"{IMAGE}\n",
    f"{IMAGE}.partial.0123456789abcdef",
    f"{ID}.ext4",
    IMAGE.upper(),
    f"{ID[:-1]}.meta",
]


def ignore(progress: Progress) -> None:
    """Ignore a progress report."""


def names(root: Path) -> list[str]:
    """Return the names of all entries of a directory."""
    return sorted(path.name for path in root.iterdir())


def _open_channels() -> set[str]:
    """Return the sockets and pipes that this process has open."""
    targets = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this iteration
            targets.add(str(descriptor.readlink()))
    return {target for target in targets if target.startswith(("socket:", "pipe:"))}


class ImageDirectoryContract:
    """The tests of the promises in the docstrings of the port."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """Give a converted file as the builder leaves it."""
        path = tmp_path / "converted"
        path.write_bytes(CONTENT)
        path.chmod(0o600)
        return path

    @pytest_twisted.ensureDeferred
    async def test_installs(self, directory: ImageDirectory, root: Path, source: Path) -> None:
        """A file is installed completely, with mode 0600 and its name, and leaves no temporary."""
        assert await directory.exists(IMAGE) is None
        await directory.install(source, IMAGE, SHA256, ignore)
        installed_file = await directory.exists(IMAGE)
        assert installed_file is not None
        assert (installed_file.name, installed_file.size) == (IMAGE, len(CONTENT))
        assert (root / IMAGE).read_bytes() == CONTENT
        assert (root / IMAGE).stat().st_mode & 0o7777 == 0o600
        assert names(root) == [IMAGE]
        assert source.read_bytes() == CONTENT

    @pytest_twisted.ensureDeferred
    async def test_installs_again(
        self, directory: ImageDirectory, root: Path, source: Path
    ) -> None:
        """Installing a file again, or over another one, leaves one complete file."""
        await directory.write(b"old", IMAGE)
        for _ in range(2):
            await directory.install(source, IMAGE, SHA256, ignore)
            assert names(root) == [IMAGE]
            assert (root / IMAGE).read_bytes() == CONTENT

    @pytest_twisted.ensureDeferred
    async def test_installs_at_once(
        self, directory: ImageDirectory, root: Path, source: Path
    ) -> None:
        """Concurrent deliveries of one name do not disturb each other."""
        await gather_or_cancel(directory.install(source, IMAGE, SHA256, ignore) for _ in range(3))
        assert names(root) == [IMAGE]
        assert (root / IMAGE).read_bytes() == CONTENT

    @pytest_twisted.ensureDeferred
    async def test_file_that_others_can_read(
        self, directory: ImageDirectory, root: Path, source: Path
    ) -> None:
        """The installed file has mode 0600, whatever the mode of the source."""
        source.chmod(0o644)
        await directory.install(source, IMAGE, SHA256, ignore)
        assert (root / IMAGE).stat().st_mode & 0o7777 == 0o600
        assert source.stat().st_mode & 0o7777 == 0o644

    @pytest_twisted.ensureDeferred
    async def test_opens_a_file_to_users(self, directory: ImageDirectory, root: Path) -> None:
        """An installed file gets the mode that it is to have, and is closed again."""
        await directory.write(b"content", IMAGE)
        for mode in (0o644, 0o600):
            assert await directory.set_access(IMAGE, FileAccess(mode))
            assert (root / IMAGE).stat().st_mode & 0o7777 == mode

    @pytest_twisted.ensureDeferred
    async def test_reports(self, directory: ImageDirectory, source: Path) -> None:
        """Progress rises to the size of the file and is reported in the thread of the reactor."""
        source.chmod(0o644)
        reports: list[Progress] = []

        def report(progress: Progress) -> None:
            assert threading.current_thread() is threading.main_thread()
            reports.append(progress)

        await directory.install(source, IMAGE, SHA256, report)
        done = [report.done for report in reports if report.stage == "deliver"]
        assert done == sorted(done)
        assert done[-1] == reports[-1].done == reports[-1].total == len(CONTENT)

    @pytest_twisted.ensureDeferred
    async def test_other_bytes_than_promised(
        self, directory: ImageDirectory, root: Path, source: Path
    ) -> None:
        """A file with an unexpected digest is refused; the installed file stays."""
        await directory.write(b"old", IMAGE)
        source.write_bytes(CONTENT[::-1])
        source.chmod(0o644)
        with pytest.raises(DeliveryFailed):
            await directory.install(source, IMAGE, SHA256, ignore)
        assert names(root) == [IMAGE]
        assert (root / IMAGE).read_bytes() == b"old"

    @pytest_twisted.ensureDeferred
    async def test_source_that_is_gone(
        self, directory: ImageDirectory, root: Path, tmp_path: Path
    ) -> None:
        """A source that cannot be read leaves nothing behind."""
        with pytest.raises(DeliveryFailed):
            await directory.install(tmp_path / "nothing", IMAGE, SHA256, ignore)
        assert names(root) == []

    @pytest_twisted.ensureDeferred
    async def test_cancelled(self, directory: ImageDirectory, root: Path, source: Path) -> None:
        """A cancelled delivery leaves nothing behind."""
        source.chmod(0o644)
        running: Deferred[Verification] = Deferred()

        def report(progress: Progress) -> None:
            running.cancel()

        os.truncate(source, 512 << 20)
        running = Deferred.fromCoroutine(directory.install(source, IMAGE, SHA256, report))
        with pytest.raises(Exception, match=r"^$") as caught:
            await running
        assert caught.typename == "CancelledError"
        assert names(root) == []

    @pytest_twisted.ensureDeferred
    async def test_writes(self, directory: ImageDirectory, root: Path) -> None:
        """A small file is written and replaced completely, with mode 0600."""
        for content in (b"FORMAT: squashfs\n", b"", b"FORMAT: squashfs\nUSERACL: 1\n"):
            await directory.write(content, META)
            assert (root / META).read_bytes() == content
            assert (root / META).stat().st_mode & 0o7777 == 0o600
            assert names(root) == [META]

    @pytest_twisted.ensureDeferred
    async def test_times(self, directory: ImageDirectory, root: Path, source: Path) -> None:
        """The time of the last write is in whole seconds and stays until the file is written."""
        await directory.install(source, IMAGE, SHA256, ignore)
        delivery_time = int((root / IMAGE).stat().st_mtime)
        assert await directory.exists(IMAGE) == InstalledFile(IMAGE, len(CONTENT), delivery_time)
        await directory.write(b"x", META)
        os.utime(root / IMAGE, (1_000_000_000, 1_234_567_890.9))
        changed_file = InstalledFile(IMAGE, len(CONTENT), 1_234_567_890)
        assert await directory.exists(IMAGE) == changed_file
        assert changed_file in await directory.list()

    @pytest_twisted.ensureDeferred
    async def test_removes(self, directory: ImageDirectory, root: Path) -> None:
        """A removed file is gone; removing a file that does not exist is no error."""
        await directory.write(b"x", META)
        await directory.remove(META)
        await directory.remove(META)
        assert names(root) == []

    @pytest_twisted.ensureDeferred
    async def test_lists(self, directory: ImageDirectory, root: Path) -> None:
        """Images and metadata are listed; other entries are ignored."""
        assert list(await directory.list()) == []
        await directory.write(b"12345", IMAGE)
        await directory.write(b"123", META)
        for name in ("README", f"{IMAGE}.partial.0123456789abcdef", f"{ID}.ext4"):
            (root / name).write_bytes(b"")
        (root / f"{'f' * 64}.squashfs").mkdir()
        (root / f"{'e' * 64}.meta").symlink_to(META)
        assert [(file.name, file.size) for file in await directory.list()] == [
            (META, 3),
            (IMAGE, 5),
        ]

    @pytest_twisted.ensureDeferred
    async def test_digest(self, directory: ImageDirectory, source: Path) -> None:
        """The digest is that of the installed bytes; without a file it is an error."""
        await directory.install(source, IMAGE, SHA256, ignore)
        assert await directory.digest(IMAGE) == SHA256
        with pytest.raises(DeliveryFailed):
            await directory.digest(META)
        for content in (b"", b"USERACL: 1\n"):
            await directory.write(content, META)
            assert await directory.digest(META) == hashlib.sha256(content).hexdigest()

    @pytest_twisted.ensureDeferred
    async def test_reads(
        self, directory: ImageDirectory, root: Path, source: Path, tmp_path: Path
    ) -> None:
        """A small file is read completely; absent files, large files and symlinks are not read."""
        assert await directory.read(META, 100) is None
        assert await directory.head(META, 100) == b""
        for content in (b"", b"FORMAT: squashfs\n", b"x" * 100):
            await directory.write(content, META)
            assert await directory.read(META, 100) == content
            assert await directory.head(META, 7) == content[:7]
            assert await directory.head(META, 1000) == content
        assert await directory.read(META, 99) is None
        (root / META).unlink()
        (tmp_path / "secret").write_bytes(b"secret")
        (root / META).symlink_to(tmp_path / "secret")
        assert await directory.read(META, 100) is None
        assert await directory.head(META, 100) == b""

    @pytest_twisted.ensureDeferred
    async def test_symlink_is_no_file(
        self, directory: ImageDirectory, root: Path, tmp_path: Path
    ) -> None:
        """A symlink is no installed file, is not followed, and is itself replaced or removed."""
        target = tmp_path / "target"
        target.write_bytes(b"precious")
        (root / META).symlink_to(target)
        assert await directory.exists(META) is None
        await directory.write(b"new", META)
        assert (root / META).is_symlink() is False
        (root / IMAGE).symlink_to(target)
        await directory.remove(IMAGE)
        assert target.read_bytes() == b"precious"
        assert names(root) == [META]

    @pytest.mark.parametrize("name", BAD_NAMES)
    @pytest_twisted.ensureDeferred
    async def test_names(
        self, directory: ImageDirectory, root: Path, source: Path, name: str
    ) -> None:
        """Only names of images and metadata are accepted."""
        before = names(root.parent)
        for attempt in (
            directory.exists(name),
            directory.install(source, name, SHA256, ignore),
            directory.write(b"x", name),
            directory.remove(name),
            directory.digest(name),
        ):
            with pytest.raises(ValueError, match="cannot be the name"):
                await attempt
        assert (names(root), names(root.parent)) == ([], before)

    @pytest_twisted.ensureDeferred
    async def test_sweeps(self, directory: ImageDirectory, root: Path) -> None:
        """Old temporaries of dead attempts are removed; young ones and other files stay."""
        now = time.time()
        young = f"{IMAGE}.partial.{'1' * 16}"
        unswept = [young, f"{IMAGE}.partial.short", IMAGE, "other.partial.0123456789abcdef"]
        old = [f"{IMAGE}.partial.{'0' * 16}", f"{META}.partial.{'f' * 16}"]
        for name in unswept + old:
            (root / name).touch()
            os.utime(root / name, (now - 7200, now - 7200))
        os.utime(root / young, (now, now))
        assert await directory.sweep(now - 3600) == len(old)
        assert names(root) == sorted(unswept)

    @pytest_twisted.ensureDeferred
    async def test_probe(self, directory: ImageDirectory, root: Path) -> None:
        """A probe of a directory that can be written succeeds and leaves nothing behind."""
        await directory.write(b"x", META)
        for content in (b"", b"probe\n", bytes(1 << 16)):
            await directory.probe(content)
        assert names(root) == [META]

    @pytest_twisted.ensureDeferred
    async def test_close(self, directory: ImageDirectory, root: Path) -> None:
        """After `close` no connection or child process is left; it may be called again."""
        before = _open_channels()
        await directory.write(b"x", META)
        await directory.close()
        assert _open_channels() == before
        await directory.close()
        assert names(root) == [META]

    @pytest_twisted.ensureDeferred
    async def test_close_before_use(self, directory: ImageDirectory) -> None:
        """A directory that was never used can be closed."""
        await directory.close()

    @pytest_twisted.ensureDeferred
    async def test_free_space(self, directory: ImageDirectory, root: Path) -> None:
        """The free space is what an unprivileged user may still write."""
        status = os.statvfs(root)
        free = await directory.free_space()
        assert abs(free - status.f_bavail * status.f_frsize) < 1 << 30

    @pytest_twisted.ensureDeferred
    async def test_directory_that_is_gone(
        self, directory: ImageDirectory, root: Path, source: Path
    ) -> None:
        """If the directory is missing, every method raises an error, and none creates it."""
        root.rmdir()
        for attempt in (
            directory.install(source, IMAGE, SHA256, ignore),
            directory.write(b"x", META),
            directory.probe(b"x"),
            directory.list(),
            directory.free_space(),
        ):
            with pytest.raises(DeliveryFailed) as caught:
                await attempt
            assert str(root) not in str(caught.value)
        assert not root.exists()
