"""Downloads of layers resume within a pull, after the death of a worker, and after a failure.

The registry is the real one; a relay in front of it counts the bytes of the layer. With
`SHIFTERGW_LONG=1` the layer has 300 MB and workers are killed at ten points of it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shiftergw.model.images import Descriptor, Digest
from tests.images import entry, oci_layout, tar_of
from tests.parts import need
from tests.patience import patient
from tests.registries import DockerRegistry
from tests.relay import BlobRelay
from tests.running_service import BOB, Service, until

LONG = os.environ.get("SHIFTERGW_LONG") == "1"
SIZE, KILLS = (300_000_000, 10) if LONG else (30_000_000, 3)

IN_FLIGHT = 2_000_000
"""Bytes that the relay passes on beyond the point at which workers are killed."""

NAME = "lib/large:1"
SECONDS = 120.0


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Run a registry with an image of one large layer."""
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def relay(registry: DockerRegistry, tmp_path: Path) -> Iterator[BlobRelay]:
    """Run a relay that watches the layer of a new image."""
    layer = tar_of([entry("large", os.urandom(SIZE))])
    oci_layout(tmp_path / "layout", [layer], compression="plain")
    registry.push(tmp_path / "layout", NAME)
    blob = Descriptor(Digest.of(layer), len(layer))
    with BlobRelay(int(registry.host.rpartition(":")[2]), blob) as running:
        yield running


class Gateway(Service):
    """A gateway whose registry is behind a relay."""

    def __init__(self, root: Path, relay: BlobRelay, **changes: Any) -> None:
        """Let pulls fail soon."""
        need("mksquashfs")
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{relay.host}"}}
        super().__init__(root, locations, {"FailureHold": 1, **changes})
        self._partial = root / "cache" / "sha256" / f"{relay.blob.digest.hex}.partial"

    def bytes_on_disk(self) -> int:
        """Return the size of the partial file of the layer."""
        with suppress(FileNotFoundError):
            return self._partial.stat().st_size
        return 0

    def bytes_of_parts(self) -> int:
        """Return the size of the packs that are being made."""
        with suppress(FileNotFoundError):
            return sum(part.stat().st_size for part in self._partial.parents[1].rglob("*.part"))
        return 0

    def download(self, position: int) -> None:
        """Request the image until a worker has written its layer up to a position."""
        deadline = time.monotonic() + patient(SECONDS)
        next_poll = 0.0
        while self.bytes_on_disk() < position:
            assert time.monotonic() < deadline
            if time.monotonic() >= next_poll:
                # A pull fails after five deaths of workers, and the next poll begins another one.
                self.poll(NAME)
                next_poll = time.monotonic() + 0.5
            time.sleep(0.002)

    def kill_workers(self) -> int:
        """Kill all workers; return how many bytes of the layer they have written.

        The gateway reaps a process only after its last thread has ended and closed its files.
        """
        workers = [Path(f"/proc/{worker}") for worker in self.workers()]
        for worker in workers:
            os.kill(int(worker.name), signal.SIGKILL)
        until(lambda: not any(worker.exists() for worker in workers), 10, "the workers' end")
        return self.bytes_on_disk()


@pytest.mark.slow
def test_a_killed_worker(relay: BlobRelay, tmp_path: Path) -> None:
    """After SIGKILL only the bytes that were not written yet move again."""
    # One in each part of the layer: bytes in flight at a kill must not reach the next point.
    part = SIZE // KILLS
    points = [n * part + random.randrange(1, part - IN_FLIGHT) for n in range(KILLS)]
    positions = [0]
    with Gateway(tmp_path / "service", relay) as gateway:
        for point in points:
            relay.limit = point + IN_FLIGHT
            gateway.download(point)
            positions.append(gateway.kill_workers())
        relay.mend()
        answer = gateway.pull(NAME, seconds=SECONDS)
        while answer["status"] != "READY":
            assert "workers died" in answer["cause"], answer
            answer = gateway.pull(NAME, seconds=SECONDS)
    assert [request.start for request in relay.requests] == positions, points
    for request, position in zip(relay.requests, positions[1:], strict=False):
        assert request.start + request.count - position <= IN_FLIGHT
    last = relay.requests[-1]
    assert last.start + last.count == relay.blob.size


METER = """#!/bin/sh
[ "$1" = - ] || exec {program} "$@"
mkfifo {fifo}
wc -c <{fifo} >>{counts} &
tee {fifo} | {program} "$@"
"""
"""A script that appends the bytes which one run of `mksquashfs` gets to a file."""


def test_a_download_that_breaks_while_it_is_packed(relay: BlobRelay, tmp_path: Path) -> None:
    """The layer is converted in one pass over both connections, and no byte is fed twice."""
    meter, counts = tmp_path / "meter", tmp_path / "counts"
    program = need("mksquashfs")
    meter.write_text(METER.format(program=program, fifo=tmp_path / "fifo", counts=counts))
    meter.chmod(0o755)
    relay.limit = point = SIZE // 2
    with Gateway(tmp_path / "service", relay, Mksquashfs=str(meter)) as gateway:
        gateway.download(point)
        until(lambda: gateway.bytes_of_parts() > point // 2, SECONDS, "half of the pack")
        relay.break_connections()
        relay.mend()
        answer = gateway.pull(NAME, seconds=SECONDS)
        assert answer["status"] == "READY", answer
    assert [request.start for request in relay.requests] == [0, point]
    assert sum(request.count for request in relay.requests) == relay.blob.size
    until(lambda: counts.exists() and counts.read_text(), 10, "the count of bytes")
    (fed_bytes,) = map(int, counts.read_text().split())
    assert SIZE < fed_bytes < SIZE + 100_000  # with the headers of the archive


def test_a_failed_pull(relay: BlobRelay, tmp_path: Path) -> None:
    """Bytes that a failed pull has downloaded serve the next one, also another user's."""
    point = SIZE * 5 // 6
    with Gateway(tmp_path / "service", relay, RegistryWait=1) as gateway:
        relay.limit = point
        gateway.download(point)
        relay.break_connections()
        answer = gateway.pull(NAME, seconds=SECONDS)
        assert answer["status"] == "FAILURE", answer
        assert gateway.bytes_on_disk() == point
        relay.mend()

        def is_ready() -> bool:
            """Return whether a pull of another user has succeeded, once the failure is over."""
            return bool(gateway.poll(NAME, BOB)["status"] == "READY")

        until(is_ready, SECONDS, "another user's pull")
    assert [request.start for request in relay.requests] == [0, point]
    assert sum(request.count for request in relay.requests) == relay.blob.size
