"""Callers and processes that share a download, wait for it, and are cancelled."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread

from shiftergw.cache import blob_cache as cache_module
from shiftergw.cache.blob_cache import BlobFiles
from shiftergw.cache.blob_writer import BlobWriter
from shiftergw.cache.download_locks import DOWNLOAD_WAIT
from shiftergw.cache.partial import PartialBlob
from shiftergw.errors import RetryLater
from shiftergw.model.images import Descriptor
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BlobSink
from tests.cache.downloads import BLOB, CONTENT, Source, fetch_blob, ignore, refuse
from tests.installed_reactor import reactor
from tests.patience import patient


@pytest_twisted.ensureDeferred
async def test_callers_of_one_process_share_a_download(cache: BlobFiles) -> None:
    """Ten callers share one download; waiting callers get reports of its progress."""
    source, reports = Source(piece=2000), list[int]()

    async def slowly(offset: int, sink: BlobSink) -> None:
        await source(offset, sink)
        await pause(0.25, reactor)

    paths = await gather_or_cancel(
        fetch_blob(cache, BLOB, slowly, reports.append) for _ in range(10)
    )
    assert len(set(paths)) == 1
    assert source.offsets == [0]
    assert reports.count(len(CONTENT)) >= 10


@pytest_twisted.ensureDeferred
async def test_a_waiting_caller_takes_over(cache: BlobFiles) -> None:
    """When the downloading caller is cancelled, a waiting caller resumes the download."""
    download_start = Deferred[None]()

    async def half(_: int, sink: BlobSink) -> None:
        download_start.callback(None)
        sink.write(CONTENT[:150_000])
        await Deferred()

    first = Deferred.fromCoroutine(fetch_blob(cache, BLOB, half, ignore))
    await download_start
    source = Source()
    second = Deferred.fromCoroutine(fetch_blob(cache, BLOB, source, ignore))
    await pause(0.2, reactor)
    first.cancel()
    path = await second
    assert path.read_bytes() == CONTENT
    assert source.offsets == [150_000]
    with pytest.raises(CancelledError):
        await first


@pytest_twisted.ensureDeferred
async def test_cancelled_while_waiting(cache: BlobFiles) -> None:
    """A waiting caller can be cancelled; the download goes on."""
    source = Source()
    first = Deferred.fromCoroutine(fetch_blob(cache, BLOB, source, ignore))
    second = Deferred.fromCoroutine(fetch_blob(cache, BLOB, refuse, ignore))
    await pause(0, reactor)
    second.cancel()
    with pytest.raises(CancelledError):
        await second
    assert (await first).read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_cancellation_waits_for_the_thread(tmp_path: Path, threads: Threads) -> None:
    """No thread writes after a cancellation has ended, even if it was requested twice."""
    partial = GatedBlob(tmp_path / "p", BLOB)
    partial.open()
    writer = BlobWriter(partial, BLOB, threads, ignore, lambda: None)
    writer.write(CONTENT[:10])
    while not partial.write_start.is_set():
        await pause(0.01, reactor)
    writer.write(CONTENT[10:20])
    ends = []

    async def settle() -> None:
        try:
            await writer.settle()
        finally:
            ends.append(True)

    settling = Deferred.fromCoroutine(settle())
    settling.cancel()
    settling.cancel()
    await pause(0.05, reactor)
    assert ends == []
    partial.gate.set()
    with pytest.raises(CancelledError):
        await settling
    assert (tmp_path / "p").read_bytes() == CONTENT[:10]
    partial.close()


class GatedBlob(PartialBlob):
    """A file that writes when the gate opens."""

    def __init__(self, path: Path, blob: Descriptor) -> None:
        """Close the gate."""
        super().__init__(path, blob)
        self.write_start = threading.Event()
        self.gate = threading.Event()

    def append(self, data: memoryview) -> None:
        """Wait for the gate, then write."""
        self.write_start.set()
        assert self.gate.wait(patient(10))
        super().append(data)


OTHER_PROCESS = """
import pathlib, sys, time
from twisted.internet import task
from twisted.internet.defer import Deferred
from shiftergw.model.images import Descriptor, Digest
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.cache.blob_cache import BlobFiles

directory, digest, source, go = sys.argv[1:]
content = pathlib.Path(source).read_bytes()

async def main(reactor):
    async def download(offset, sink):
        sink.begin(offset)
        sink.write(content[offset:100_000])
        print("half", flush=True)
        while not pathlib.Path(go).exists():
            await pause(0.02, reactor)
        sink.write(content[100_000:])
    threads = Threads(reactor, 2, "other")
    threads.startService()
    cache = BlobFiles(pathlib.Path(directory), threads, reactor)
    blob = Descriptor(Digest.parse(digest), len(content))
    async with cache.get(blob, download, lambda size: None, lambda opening: None):
        pass
    await threads.stopService()

task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
    """Give a process in the middle of a download, and a function that lets it go on."""
    (tmp_path / "source").write_bytes(CONTENT)
    process = subprocess.Popen(
        [
            sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "cache"), str(BLOB.digest),
            str(tmp_path / "source"), str(tmp_path / "go"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},  # noqa: PTH109
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    yield process, (tmp_path / "go").touch
    process.kill()
    process.wait()
    process.stdout.close()


@pytest_twisted.ensureDeferred
async def test_processes_share_a_download(
    cache: BlobFiles, other_process: tuple[subprocess.Popen[str], Callable[[], None]]
) -> None:
    """While another process downloads, its progress is reported; its result is used."""
    process, go_on = other_process

    def report(size: int) -> None:
        if size == 100_000:
            go_on()

    path = await fetch_blob(cache, BLOB, refuse, report)
    assert path.read_bytes() == CONTENT
    assert process.wait(patient(10)) == 0


@pytest_twisted.ensureDeferred
async def test_a_long_download_elsewhere_holds_no_worker(
    cache: BlobFiles,
    other_process: tuple[subprocess.Popen[str], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a limit the pull is postponed; later it finds the blob of the other process."""
    process, go_on = other_process
    monkeypatch.setattr(cache_module, "PATIENCE", 0.3)
    with pytest.raises(RetryLater) as caught:
        await fetch_blob(cache, BLOB, refuse, ignore)
    assert caught.value.why == "another pull that downloads the same layer"
    assert caught.value.limit == DOWNLOAD_WAIT
    go_on()
    await deferToThread(process.wait, 10)
    assert (await fetch_blob(cache, BLOB, refuse, ignore)).read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_download_of_a_killed_process_is_resumed(
    cache: BlobFiles, other_process: tuple[subprocess.Popen[str], Callable[[], None]]
) -> None:
    """When the other process dies, the next one resumes its partial file."""
    process, _ = other_process
    source, reports = Source(), list[int]()

    def report(size: int) -> None:
        reports.append(size)
        if size == 100_000:
            process.kill()

    path = await fetch_blob(cache, BLOB, source, report)
    assert path.read_bytes() == CONTENT
    assert source.offsets == [100_000]
