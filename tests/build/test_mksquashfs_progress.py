"""A running `mksquashfs`: one that works goes on, and one that is frozen is stopped."""

from __future__ import annotations

import fcntl
import os
import sys
import termios
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue
from twisted.internet.task import Clock, deferLater

from shiftergw.build.archive_flow import IDLE_LIMIT
from shiftergw.build.mksquashfs import Mksquashfs
from shiftergw.errors import ConversionFailed
from shiftergw.plumbing.process import cpu_seconds
from shiftergw.plumbing.threads import Threads
from tests.build.parts import TIME, directory, file, running_in, script, tar_of_tree, writing
from tests.work.waiting import until

real: Any = reactor


class ObservedThreads(Threads):
    """Threads of another pool, which tell when the progress of a program has been read."""

    def __init__(self, threads: Threads, looks: DeferredQueue[Any]) -> None:
        """Put each answer into `looks`."""
        super().__init__(real, 1, "unused")
        self._threads = threads
        self._looks = looks

    def begin(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        """Begin the function in the other pool."""

        def tell(result: Any) -> Any:
            if isinstance(result, tuple):
                real.callLater(0, self._looks.put, result)  # after the caller's callbacks
            return result

        return self._threads.begin(function, *args, **kwargs).addCallback(tell)


@pytest.mark.parametrize("text", ["", "cat >/dev/null"])
@pytest_twisted.ensureDeferred
async def test_a_frozen_program_is_stopped(tmp_path: Path, threads: Threads, text: str) -> None:
    """A program that neither reads nor writes nor ends for ten minutes is a failure."""
    clock = Clock()
    binary = script(tmp_path / "mksquashfs", text + "\nwhile :; do sleep 0.1; done")
    output = tmp_path / "image"
    tar = tar_of_tree(directory(a=file(bytes(300_000))))
    looks: DeferredQueue[Any] = DeferredQueue()
    observed_threads = ObservedThreads(threads, looks)
    program = Mksquashfs(binary, observed_threads, real, clock)
    running = Deferred.fromCoroutine(
        program.run([str(output)], TIME, output, writing(tar), lambda _: None)
    )
    await deferLater(real, 0.3)

    async def advance(seconds: float) -> None:
        clock.advance(seconds)
        await looks.get()

    await advance(1)
    output.write_bytes(b"progress")
    for _ in range(2):
        await advance(IDLE_LIMIT - 1)
        assert running_in(tmp_path)
        output.write_bytes(output.read_bytes() + b"more")
    await advance(1)
    clock.advance(IDLE_LIMIT)
    with pytest.raises(ConversionFailed, match="no progress for 10 minutes"):
        await running
    assert running_in(tmp_path) == []
    assert clock.getDelayedCalls() == []


def waiting(descriptor: int, stop: Event, report: Callable[[int, int], None]) -> None:
    """Write nothing, and wait for the stop event."""
    del descriptor, report
    stop.wait()


def _has_worked(pid: int, seconds: float) -> bool:
    return cpu_seconds(pid) > seconds


@pytest_twisted.ensureDeferred
async def test_work_is_progress(tmp_path: Path, threads: Threads) -> None:
    """A program that neither reads nor writes, but computes, is not frozen."""
    clock = Clock()
    looks: DeferredQueue[Any] = DeferredQueue()
    mark = tmp_path / "pid"
    binary = script(tmp_path / "mksquashfs", f"echo $$ >{mark}; while :; do :; done")
    program = Mksquashfs(binary, ObservedThreads(threads, looks), real, clock)
    signs: list[None] = []
    running = Deferred.fromCoroutine(
        program.run(
            ["-"],
            TIME,
            tmp_path / "image",
            waiting,
            lambda _: None,
            note_work=lambda: signs.append(None),
        )
    )
    await until(lambda: mark.exists() and mark.read_text())
    pid = int(mark.read_text())
    for number in range(4):
        enough = cpu_seconds(pid) + 0.3
        await until(partial(_has_worked, pid, enough), 60)
        clock.advance(IDLE_LIMIT - 1)
        await looks.get()
        assert not running.called
        await until(lambda: len(signs) > number)  # noqa: B023 - within this iteration
    running.cancel()
    with pytest.raises(CancelledError):
        await running


@pytest_twisted.ensureDeferred
async def test_entries_are_progress(tmp_path: Path, threads: Threads) -> None:
    """A program that reads nothing but headers for a long time is not frozen."""
    clock = Clock()
    looks: DeferredQueue[Any] = DeferredQueue()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    binary = script(
        tmp_path / "mksquashfs",
        # Open for both: a pipe without a writer for a moment would be at its end.
        f"exec 3<>{gate}; while read -r _ <&3; do dd bs=512 count=1 status=none of=/dev/null; done",
    )
    tar = tar_of_tree(directory(**{f"{n}": file(b"") for n in range(100)}))
    program = Mksquashfs(binary, ObservedThreads(threads, looks), real, clock)
    pipes: list[int] = []

    def headers(descriptor: int, stop: Event, report: Callable[[int, int], None]) -> None:
        os.write(descriptor, tar)
        report(0, len(tar))
        pipes.append(descriptor)
        stop.wait()

    def holds(size: int) -> bool:
        unread = fcntl.ioctl(pipes[0], termios.FIONREAD, bytes(4))
        return int.from_bytes(unread, sys.byteorder) == size

    running = Deferred.fromCoroutine(
        program.run(["-"], TIME, tmp_path / "image", headers, lambda _: None)
    )
    await until(lambda: pipes)
    for n in range(1, 5):
        await threads.run(gate.write_text, "go\n")
        await until(partial(holds, len(tar) - n * 512), 60)
        clock.advance(IDLE_LIMIT - 1)
        await looks.get()
        assert not running.called
    running.cancel()
    with pytest.raises(CancelledError):
        await running


@pytest_twisted.ensureDeferred
async def test_waiting_for_a_download_is_not_idleness(tmp_path: Path, threads: Threads) -> None:
    """A program without input may wait as long as its writer; one that leaves its input may not."""
    clock = Clock()
    looks: DeferredQueue[Any] = DeferredQueue()
    binary = script(tmp_path / "mksquashfs", "while :; do sleep 0.1; done")
    program = Mksquashfs(binary, ObservedThreads(threads, looks), real, clock)
    arrival, write_end = Event(), Event()

    def write(descriptor: int, stop: Event, report: Callable[[int, int], None]) -> None:
        arrival.wait()
        os.write(descriptor, b"data")
        report(0, 4)
        write_end.set()
        stop.wait()

    running = Deferred.fromCoroutine(
        program.run(["-"], TIME, tmp_path / "image", write, lambda _: None, writers=threads)
    )
    await until(lambda: running_in(tmp_path) != [])
    for _ in range(3):
        clock.advance(IDLE_LIMIT)
        await looks.get()
        assert not running.called
    arrival.set()
    await until(write_end.is_set)
    clock.advance(1)
    await looks.get()
    clock.advance(IDLE_LIMIT)
    with pytest.raises(ConversionFailed, match="no progress for 10 minutes"):
        await running
    assert running_in(tmp_path) == []
