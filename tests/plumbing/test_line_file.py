"""A file to which lines are appended, such as the audit log."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest
import pytest_twisted
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from shiftergw.plumbing import line_file
from shiftergw.plumbing.line_file import LineFile, append_lines
from shiftergw.plumbing.threads import Threads
from tests.installed_reactor import reactor as real
from tests.patience import patient
from tests.work.waiting import until


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Yield the lines of the program's own log."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "line_file" in str(event.get("log_namespace")):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest_twisted.ensureDeferred
async def test_lines_and_rotation(tmp_path: Path, threads: Threads) -> None:
    """Lines keep their order; a file that was renamed or truncated is continued anew."""
    path = tmp_path / "audit.log"
    file = LineFile(path, threads)
    old_mask = os.umask(0o077)
    try:
        for number in range(3):
            file.append(str(number))
        await file.close()
    finally:
        os.umask(old_mask)
    assert path.read_text() == "0\n1\n2\n"
    assert path.stat().st_mode & 0o777 == 0o640
    path.rename(tmp_path / "audit.log.1")
    file.append("3")
    await file.close()
    os.truncate(path, 0)
    file.append("4")
    await file.close()
    assert path.read_text() == "4\n"
    assert (tmp_path / "audit.log.1").read_text() == "0\n1\n2\n"


@pytest_twisted.ensureDeferred
async def test_a_disk_that_fails(
    tmp_path: Path, threads: Threads, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure is logged once; lines wait for the disk, and those beyond a limit are counted."""
    monkeypatch.setattr(line_file, "MOST_WAITING", 3)
    path = tmp_path / "absent" / "audit.log"
    file = LineFile(path, threads)
    for number in range(5):
        file.append(str(number))
        await file.close()
    path.parent.mkdir()
    await file.close()
    assert path.read_text() == "0\n1\n2\n"
    first, second = log
    assert "cannot be written: No such file or directory" in first
    assert second.endswith("can be written again; 2 lines are lost")
    file.append("5")
    await file.close()
    assert (path.read_text(), len(log)) == ("0\n1\n2\n5\n", 2)


@pytest_twisted.ensureDeferred
async def test_a_disk_that_has_room_again(
    tmp_path: Path, threads: Threads, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next line has all that wait written, also if it is one too many itself."""
    monkeypatch.setattr(line_file, "MOST_WAITING", 2)
    path = tmp_path / "absent" / "audit.log"
    file = LineFile(path, threads)
    for number in range(2):
        file.append(str(number))
        await file.close()
    path.parent.mkdir()
    file.append("too many")
    await until(path.exists)
    await file.close()
    assert path.read_text() == "0\n1\n"
    assert log[1].endswith("can be written again; 1 lines are lost")


@pytest_twisted.ensureDeferred
async def test_lines_that_are_lost_are_reported(
    tmp_path: Path, threads: Threads, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk loses lines without a failure; a short failure loses none."""
    monkeypatch.setattr(line_file, "MOST_WAITING", 2)
    path, gate = tmp_path / "audit.log", Event()

    def append_late(path: Path, lines: Sequence[str]) -> None:
        gate.wait(patient(10))
        append_lines(path, lines)

    monkeypatch.setattr(line_file, "append_lines", append_late)
    file = LineFile(path, threads)
    for number in range(5):
        file.append(str(number))
    gate.set()
    await file.close()
    assert path.read_text() == "0\n1\n"
    assert [line.partition("audit.log ")[2] for line in log] == [
        "is on a disk that is too slow; 3 lines are lost"
    ]
    path.unlink()
    path.mkdir()
    file.append("5")
    await file.close()
    path.rmdir()
    await file.close()
    assert [path.read_text(), len(log)] == ["5\n", 3]
    assert log[2].endswith("audit.log can be written again")


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_no_regular_file(tmp_path: Path, kind: str) -> None:
    """A FIFO does not block, and a symbolic link is not followed."""
    path = tmp_path / "audit.log"
    if kind == "fifo":
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    else:
        path.symlink_to(tmp_path / "other")
        reader = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=r"regular|symbolic"):
            append_lines(path, ["text"])
    finally:
        os.close(reader)
    assert not (tmp_path / "other").exists()


@pytest_twisted.ensureDeferred
async def test_after_the_stop_of_the_threads(tmp_path: Path, log: list[str]) -> None:
    """A line after the end of the gateway's threads is lost, and neither hangs nor raises."""
    file = LineFile(tmp_path / "audit.log", threads := Threads(real, 1, "test"))
    threads.startService()
    await threads.stopService()
    file.append("late")
    await file.close()
    assert len(log) == 1


def test_a_batch_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of a line stays behind when the disk is full."""
    path = tmp_path / "audit.log"
    append_lines(path, ["before"])
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:4]))
    with pytest.raises(OSError, match="No space left"):
        append_lines(path, ["after"])
    assert path.read_text() == "before\n"
