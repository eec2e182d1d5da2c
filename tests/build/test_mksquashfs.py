"""Running `mksquashfs`: its version, its arguments, and every way in which it can end."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater

from shiftergw.build.mksquashfs import Mksquashfs, arguments, check_version, version
from shiftergw.errors import (
    ConfigurationError,
    ConversionFailed,
    GatewayError,
    LayerInvalid,
    NoSpace,
)
from shiftergw.model.build_options import SquashOptions
from shiftergw.plumbing.threads import Threads
from tests import images
from tests.build.parts import (
    TIME,
    Write,
    content_of,
    directory,
    file,
    listing_of,
    open_descriptors,
    running_in,
    script,
    tar_of_tree,
    writing,
)
from tests.parts import need, small_disk
from tests.patience import stretch

real: Any = reactor


def endless(descriptor: int, stop: Event, report: Callable[[int, int], None]) -> None:
    """Write one file without an end."""
    info = tarfile.TarInfo("f")
    info.size = 2**40
    done = os.write(descriptor, info.tobuf(tarfile.GNU_FORMAT))
    while not stop.is_set():
        done += os.write(descriptor, bytes(65536))
        report(done, done)


def options(**members: Any) -> SquashOptions:
    """Return options of a fast and small conversion."""
    return SquashOptions(**{"memory": "64M", "level": 1, **members})


class Conversion:
    """One conversion with its output file and its reports."""

    def __init__(self, tmp_path: Path, threads: Threads, binary: str | None = None) -> None:
        """Prepare to run `binary`, else the real program."""
        self.output = tmp_path / "image"
        self.reports: list[int] = []
        self.program = Mksquashfs(binary or need("mksquashfs"), threads, real, real)

    async def run(self, write: Write, *extra: str, epoch: int = TIME, **members: Any) -> None:
        """Convert the tar that `write` writes."""
        argv = arguments(options(extra=extra, **members), self.output)
        await self.program.run(argv, epoch, self.output, write, self.reports.append)


@pytest_twisted.ensureDeferred
async def test_the_version_is_read() -> None:
    """The installed program says its version, and it is new enough."""
    numbers = await version(need("mksquashfs"), real, real)
    assert check_version(numbers) == ""


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        ("mksquashfs version 4.3 (2014/05/12)", (4, 3)),
        ("mksquashfs version 4.6.1 (2023/03/25)", (4, 6, 1)),
        ("mksquashfs version 4.5.1-git.2 (2022/03/17)", (4, 5, 1)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_versions_of_all_kinds(tmp_path: Path, line: str, numbers: tuple[int, ...]) -> None:
    """Releases of two and three numbers and builds from git are understood."""
    binary = script(tmp_path / "mksquashfs", f"echo '{line}'")
    assert await version(binary, real, real) == numbers


@pytest.mark.parametrize("text", ["exit 1", "echo hello", "kill -9 $$"])
@pytest_twisted.ensureDeferred
async def test_a_program_that_is_no_mksquashfs(tmp_path: Path, text: str) -> None:
    """A program that fails or reports no version is an error that names its key."""
    with pytest.raises(ConfigurationError, match="`Mksquashfs`"):
        await version(script(tmp_path / "mksquashfs", text), real, real)


@pytest_twisted.ensureDeferred
async def test_a_program_that_is_missing() -> None:
    """A missing program is an error that says what to install."""
    with pytest.raises(ConfigurationError, match=r"Install squashfs-tools 4\.5"):
        await version("no-such-mksquashfs", real, real)


@pytest_twisted.ensureDeferred
async def test_a_program_that_does_not_answer(tmp_path: Path) -> None:
    """A program that hangs is given up after ten seconds."""
    clock = Clock()
    binary = script(tmp_path / "mksquashfs", "exec sleep 60")
    running = Deferred.fromCoroutine(version(binary, real, clock))
    clock.advance(10)
    with pytest.raises(ConfigurationError, match="ran longer than 10 s"):
        await running


@pytest.mark.parametrize("old", [(4, 3), (4, 4), (4, 4, 1), (3, 9)])
def test_versions_that_read_no_tar_are_refused(old: tuple[int, ...]) -> None:
    """Versions before 4.5 have no `-tar`, and the error tells the operator what to do."""
    with pytest.raises(ConfigurationError, match="Enterprise Linux") as caught:
        check_version(old)
    assert "`Mksquashfs`" in caught.value.remedy


@pytest.mark.parametrize(
    ("numbers", "warns"),
    [((4, 5), 0), ((4, 6, 1), 0), ((4, 7), 1), ((4, 7, 5), 1), ((4, 7, 6), 0), ((5, 0), 0)],
)
def test_versions_with_races_are_named(numbers: tuple[int, ...], warns: bool) -> None:
    """4.7 to 4.7.5 have data races: the operator gets a warning and may go on."""
    assert bool(check_version(numbers)) == warns


@pytest.mark.parametrize(
    ("compressor", "level", "expected"),
    [
        ("gzip", 5, ["-Xcompression-level", "5"]),
        ("gzip", None, []),
        ("zstd", 3, ["-Xcompression-level", "3"]),
        ("lzo", 7, ["-Xcompression-level", "7"]),
        ("lz4", 5, []),
        ("lz4", 9, ["-Xhc"]),
        ("xz", 5, []),
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_compressor_is_understood(
    tmp_path: Path, threads: Threads, compressor: str, level: int | None, expected: list[str]
) -> None:
    """Each compressor gets the level in its own words, and the program accepts them."""
    argv = arguments(options(compressor=compressor, level=level), Path("o"))
    assert [word for word in argv if word.startswith("-X")] == expected[:1]
    assert all(word in argv for word in expected)
    conversion = Conversion(tmp_path, threads)
    tar = tar_of_tree(directory(a=file(bytes(200_000))))
    await conversion.run(writing(tar), compressor=compressor, level=level)
    assert content_of(conversion.output)["a"][2] == bytes(200_000)


def test_extra_arguments_have_the_last_word() -> None:
    """Raw arguments of the configuration stand last; processors are named only if configured."""
    argv = arguments(options(extra=("-b", "1M")), Path("out"))
    assert argv[-2:] == ["-b", "1M"]
    assert "-processors" not in argv
    assert arguments(options(processors=2), Path("out"))[-2:] == ["-processors", "2"]


@pytest_twisted.ensureDeferred
async def test_files_with_equal_heads_stay_whole(tmp_path: Path, threads: Threads) -> None:
    """Files that differ in their tails only are written as they are, at each run.

    With its search for duplicates, `mksquashfs` 4.5.1 damaged some of these files in three of four
    runs, and exited with 0.
    """
    assert "-no-duplicates" in arguments(options(), Path("out"))
    head = os.urandom(1 << 17)
    files = {f"f{number}": head + os.urandom(60_000) for number in range(80)}
    tar = images.tar_of([images.entry(name, content) for name, content in files.items()])
    for _ in range(3):
        conversion = Conversion(tmp_path, threads)
        await conversion.run(writing(tar), compressor="lz4", level=None)
        content = content_of(conversion.output)
        assert [name for name in files if content[name][2] != files[name]] == []


@pytest_twisted.ensureDeferred
async def test_the_result_holds_what_was_written(tmp_path: Path, threads: Threads) -> None:
    """The file holds the entries of the stream, owned by root below a root that all may enter."""
    conversion = Conversion(tmp_path, threads)
    await conversion.run(
        writing(images.tar_of([images.entry("d", mode=0o750), images.entry("d/f", b"data", uid=7)]))
    )
    assert content_of(conversion.output)["d/f"] == (b"0", 0o644, b"data")
    assert [line.split()[:2] for line in listing_of(conversion.output)] == [
        [b"drwxr-xr-x", b"0/0"],
        [b"drwxr-x---", b"0/0"],
        [b"-rw-r--r--", b"0/0"],
    ]


@pytest_twisted.ensureDeferred
async def test_the_same_stream_gives_the_same_bytes(tmp_path: Path, threads: Threads) -> None:
    """The result does not depend on time, number of processors or memory."""
    tree = directory(a=file(bytes(1_000_000)), b=directory(c=file(b"c"), d=file(b"d")))
    tar = tar_of_tree(tree)
    results = set()
    for members in ({"processors": 1}, {"processors": 3, "memory": "256M"}):
        conversion = Conversion(tmp_path, threads)
        await conversion.run(writing(tar), **members)
        results.add(conversion.output.read_bytes())
        await deferLater(real, 1.1)  # another second, which the result must not show
    assert len(results) == 1


@pytest_twisted.ensureDeferred
async def test_progress_is_reported(tmp_path: Path, threads: Threads) -> None:
    """The last report names all bytes, and no report goes back."""
    conversion = Conversion(tmp_path, threads)
    tar = tar_of_tree(directory(a=file(bytes(3_000_000))))
    await conversion.run(writing(tar))
    assert conversion.reports[-1] == len(tar)
    assert conversion.reports == sorted(conversion.reports)


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("kill -9 $$", ConversionFailed, "memory ran out"),
        ("kill -11 $$", ConversionFailed, "killed by signal 11"),
        ("echo 'FATAL ERROR: bad' >&2; exit 1", ConversionFailed, "failed with code 1"),
        ("cat >/dev/null; exit 2", ConversionFailed, "failed with code 2"),
        ("echo 'FATAL ERROR: Out of memory (x)' >&2; exit 1", ConversionFailed, "little memory"),
        ("echo 'Write failed because No space left' >&2; exit 1", NoSpace, "no disk space"),
        (
            "echo 'Could not resolve hardlink a, b' >&2; cat >/dev/null",
            ConversionFailed,
            "left something",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_bad_end_is_told(
    tmp_path: Path, threads: Threads, text: str, kind: type[GatewayError], what: str
) -> None:
    """The error tells the program's cause, which is not the broken pipe."""
    conversion = Conversion(tmp_path, threads, script(tmp_path / "mksquashfs", text))
    with pytest.raises(kind, match=what) as caught:
        await conversion.run(writing(tar_of_tree(directory(a=file(bytes(3_000_000))))))
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.detail.isprintable()


@pytest_twisted.ensureDeferred
async def test_a_program_that_went_missing(tmp_path: Path, threads: Threads) -> None:
    """A program that cannot be started ends the writer too."""
    with pytest.raises(ConversionFailed, match="cannot be started"):
        await Conversion(tmp_path, threads, str(tmp_path / "none")).run(endless)


@pytest_twisted.ensureDeferred
async def test_a_link_without_its_target_is_a_failure(tmp_path: Path, threads: Threads) -> None:
    """The program drops such a link and exits with 0; that is no success."""
    tar = images.tar_of(
        [images.entry("a", b"a"), images.entry("b", b"", type=b"1", linkname="none")]
    )
    conversion = Conversion(tmp_path, threads)
    with pytest.raises(ConversionFailed, match="left something out") as caught:
        await conversion.run(writing(tar))
    assert "hardlink b" in caught.value.detail


@pytest_twisted.ensureDeferred
async def test_a_stream_cut_short_is_a_failure(tmp_path: Path, threads: Threads) -> None:
    """A stream that lacks its end is refused by the program, which is an error."""
    tar = tar_of_tree(directory(a=file(bytes(300_000))))
    with pytest.raises(ConversionFailed, match="failed with code 1"):
        await Conversion(tmp_path, threads).run(writing(tar[:200_000]))


@pytest_twisted.ensureDeferred
async def test_the_writers_own_error_wins(tmp_path: Path, threads: Threads) -> None:
    """A failure of the writer is raised rather than the program's complaint about it."""
    tar = tar_of_tree(directory(a=file(bytes(3_000_000))))
    conversion = Conversion(tmp_path, threads)
    with pytest.raises(LayerInvalid, match="broken layer"):
        await conversion.run(writing(tar[:100_000], LayerInvalid("A broken layer.")))


@pytest_twisted.ensureDeferred
async def test_cancelling_ends_both(tmp_path: Path, threads: Threads) -> None:
    """A cancelled conversion has neither a process nor a thread left, nor a descriptor."""
    before = open_descriptors()
    conversion = Conversion(tmp_path, threads)
    running = Deferred.fromCoroutine(conversion.run(endless))
    await deferLater(real, 0.3)
    assert running_in(tmp_path)
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert running_in(tmp_path) == []
    assert not conversion.output.exists()
    assert open_descriptors() == before


@pytest_twisted.ensureDeferred
async def test_a_full_disk_is_named(tmp_path: Path, threads: Threads) -> None:
    """A real file system without space ends as `NoSpace`, whose retry may help."""
    place = tmp_path / "small"
    with small_disk(place, "size=2m"):
        conversion = Conversion(place, threads)
        noise = os.urandom(4_000_000)
        with pytest.raises(NoSpace) as caught:
            await conversion.run(writing(images.tar_of({"noise": noise})))
        assert caught.value.retryable


@pytest_twisted.ensureDeferred
async def test_bulk_data_does_not_stop_the_reactor(tmp_path: Path, threads: Threads) -> None:
    """While a conversion runs, each turn of the reactor takes a small part of a second."""
    worst = 0.0
    conversion = Conversion(tmp_path, threads)
    noise = io.BytesIO(os.urandom(1 << 20)).getvalue() * 20
    running = Deferred.fromCoroutine(conversion.run(writing(images.tar_of({"noise": noise}))))
    ends: list[None] = []
    running.addCallback(lambda _: ends.append(None))
    while not ends:
        start = _seconds_with_a_processor()
        await deferLater(real, 0.005)
        worst = max(worst, _seconds_with_a_processor() - start)
    assert worst < stretch(0.25)


def _seconds_with_a_processor() -> float:
    """Return a time that stands still while this thread waits for a processor."""
    waited = Path("/proc/thread-self/schedstat").read_text().split()[1]
    return time.monotonic() - int(waited) / 1e9
