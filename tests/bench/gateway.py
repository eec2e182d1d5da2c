"""Pulls through a real gateway, from the request to READY, with what they cost.

Each run has a new gateway with empty caches. It first pulls a small image, so that its worker has
started. The wall time is that of the pull, without starts. CPU time is that of the gateway, its
worker, and all programs that they start; that of the registry and of the remote system's `sshd`
does not count.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import connect
from threading import Event, Thread
from typing import Any, Self

from shiftergw.config import Config
from shiftergw.errors import ConfigurationError
from tests.bench.commands import Commands, NoMeasurement, peak_memory, tree_cpu
from tests.bench.figures import Sample
from tests.bench.image_files import ImageOnDisk
from tests.bench.tools import Compression
from tests.distance import Distance
from tests.registries import DockerRegistry
from tests.running_service import FINAL, SYSTEM, Service
from tests.sshd import Sshd, remote_section

WARM_UP = "bench/warm-up:1"
BUILDERS: Mapping[str, Mapping[str, str]] = {
    "whole": {"Builder": "whole"},
    "packs": {"Builder": "packs"},
    "direct": {"Builder": "packs", "Packer": "direct"},
}
"""Keys of a system, by the builder that they choose."""

_POLL_SHARE = 0.01  # of the time so far: the end of a pull is noticed that late
_SHORTEST_POLL, _LONGEST_POLL = 0.01, 0.25
_SCRATCH_SECONDS = 0.1
_BLOCK = 512
_MEMORY, _MEMORY_OF_ENTRY = 200_000_000, 400  # bytes: limit 5 of the design
_SUPERBLOCK = struct.Struct("<40xQ16xQ")  # bytes_used, inode_table_start


class PullFailed(Exception):
    """A pull that must work did not; the text says why."""


def is_supported(keys: Mapping[str, str]) -> bool:
    """Return whether this version of the program knows these keys of a system, and their values."""
    system = {"accesstype": "local", "local": {"imageDir": "/nonexistent"}, **keys}
    document = {
        "Platforms": {SYSTEM: system},
        "Locations": {"registry": {"remotetype": "dockerv2", "url": "http://127.0.0.1:1"}},
        "DefaultImageLocation": "registry",
        "StateDirectory": "/nonexistent",
        "CacheDirectory": "/nonexistent",
        "ExpandDirectory": "/nonexistent",
        "Authentication": "mock",
    }
    try:
        warnings = Config.from_document(document, base=Path("/"), environ={}).warnings
    except ConfigurationError:
        return False
    return not any(f".{key}: " in line for key in keys for line in warnings)


@dataclass(frozen=True)
class RemoteSystem:
    """A system behind a link, to which images are delivered over SSH."""

    sshd: Sshd
    link: Distance

    def section(self, images: Path) -> dict[str, Any]:
        """Return its section of the configuration."""
        return remote_section(self.sshd, self.link.port, images)


@dataclass(frozen=True)
class Pulls:
    """Pulls of an image from a registry at `host`, whose access log `registry` has.

    `base` is an image that the gateway, and its system, have already; its pull is not measured.
    `limit` is the longest time of a pull in seconds.
    """

    builder: str
    registry: DockerRegistry
    host: str
    image: ImageOnDisk
    compression: Compression
    limit: float
    base: ImageOnDisk | None = None
    remote: RemoteSystem | None = None

    def run(self, where: Path) -> Sample:
        """Pull the image once; raise `PullFailed`."""
        with self._gateway(where) as service:
            self._pull(service, WARM_UP)
            base_id = "" if self.base is None else self._pull(service, self.base.name)[0]
            requests = len(self.registry.blobs_asked_for())
            sent_before = 0 if self.remote is None else self.remote.link.sent_bytes()
            cpu = tree_cpu(service.pid)
            with _ScratchMeter([service.root / "cache", service.root / "expand"]) as scratch:
                image_id, wall = self._pull(service, self.image.name)
            file = service.images / f"{image_id}.squashfs"
            figures = {
                "wall": wall,
                "cpu": tree_cpu(service.pid) - cpu,
                **self._amounts(file, requests),
                **self._memory(service),
                "scratch": scratch.bytes,
                "scratch limit": self.image.size + file.stat().st_size,
                "scratch files": scratch.files,
                "scratch files limit": 2 * len(self.image.layers) + 10,
            }
            if self.remote is not None:
                figures["sent bytes"] = self.remote.link.sent_bytes() - sent_before
                verification = verification_seconds(file, self.limit)
                figures["wall without verification"] = wall - verification
            if base_id:
                figures["new bytes"] = new_bytes(service.images / f"{base_id}.squashfs", file)
            return Sample(figures, _stages(service, image_id))

    @contextmanager
    def _gateway(self, where: Path) -> Iterator[Service]:
        location = {"remotetype": "dockerv2", "url": f"http://{self.host}"}
        squashfs = {"compressor": self.compression.name, "level": self.compression.level}
        delivery = (
            {"accesstype": "local", "local": {"imageDir": str(where / "images")}}
            if self.remote is None
            else self.remote.section(where / "images")
        )
        system = {**delivery, "squashfs": squashfs, **BUILDERS[self.builder]}
        changes = {"Platforms": {SYSTEM: system}, "WorkerThreads": 1}
        service = Service(where, {"registry": location}, changes)
        try:
            service.start()
        except AssertionError as error:  # with the log
            raise PullFailed(f"the gateway does not start: {error}") from error
        try:
            yield service
        finally:
            service.stop()

    def _pull(self, service: Service, name: str) -> tuple[str, float]:
        """Pull an image; return its id and the seconds until READY."""
        begin = time.monotonic()
        while (answer := service.poll(name))["status"] not in FINAL:
            seconds = time.monotonic() - begin
            if seconds > self.limit:
                raise NoMeasurement(f"takes more than {self.limit:.0f} s")
            time.sleep(min(max(seconds * _POLL_SHARE, _SHORTEST_POLL), _LONGEST_POLL))
        if answer["status"] != "READY":
            raise PullFailed(f"the pull of {name} failed: {answer.get('status_message', '')}")
        return str(answer["id"]), time.monotonic() - begin

    def _amounts(self, file: Path, requests: int) -> dict[str, float]:
        sizes = {layer.digest: layer.size for layer in self.image.layers}
        digests = self.registry.blobs_asked_for()[requests:]
        base_digests = {layer.digest for layer in self.base.layers} if self.base else set()
        return {
            "size": file.stat().st_size,
            "layer bytes": sum(sizes.get(digest, 0) for digest in digests),
            "new layer bytes": sum(sizes[digest] for digest in sizes.keys() - base_digests),
        }

    def _memory(self, service: Service) -> dict[str, float]:
        return {
            "memory": max(peak_memory(pid) for pid in service.workers()),
            "memory limit": _MEMORY + _MEMORY_OF_ENTRY * self.image.entries,
        }


def new_bytes(base: Path, image: Path) -> int:
    """Return the bytes that a squashfs file has beyond the data of its base, with its metadata.

    The data of a squashfs file end where its inode table starts.
    """
    (_, base_data_end), (end, _) = (
        _SUPERBLOCK.unpack(path.open("rb").read(_SUPERBLOCK.size)) for path in (base, image)
    )
    return int(end - base_data_end)


def verification_seconds(image: Path, limit: float) -> float:
    """Return the seconds in which a system computes the digest of a file, as for a delivery."""
    commands = Commands(limit)
    try:
        return commands.run(["openssl", "dgst", "-sha256", image]).wall
    except NoMeasurement:
        return commands.run(["sha256sum", image]).wall


def _stages(service: Service, image_id: str) -> dict[str, float]:
    """Return the seconds of the stages that the record of an image has."""
    with closing(connect(service.root / "state" / "shiftergw.sqlite")) as store:
        rows = store.execute("SELECT document FROM images").fetchall()
    documents: list[dict[str, Any]] = [json.loads(text) for (text,) in rows]
    reports = [document.get("report") for document in documents if document["id"] == image_id]
    stages: dict[str, float] = next(report for report in reports if report)["seconds"]
    return stages


@dataclass
class _ScratchMeter:
    """Measures the most bytes and files that directories have while the context lasts.

    What they have at the start does not count.
    """

    directories: Sequence[Path]
    bytes: int = 0
    files: int = 0
    _end: Event = field(default_factory=Event)

    def __enter__(self) -> Self:
        self._start = self._look()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(_SCRATCH_SECONDS):
            count, files = self._look()
            self.bytes = max(self.bytes, count - self._start[0])
            self.files = max(self.files, files - self._start[1])

    def _look(self) -> tuple[int, int]:
        blocks = {}
        for directory in self.directories:
            for path in directory.rglob("*"):
                try:
                    status = path.stat(follow_symlinks=False)
                except OSError:
                    continue
                blocks[status.st_dev, status.st_ino] = status.st_blocks
        return sum(blocks.values()) * _BLOCK, len(blocks)
