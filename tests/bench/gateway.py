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
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import connect
from typing import Any

from shiftergw.config import Config
from shiftergw.errors import ConfigurationError
from shiftergw.job.installation import REMOTE_CHECK
from tests.bench.commands import NoMeasurement, peak_memory, tree_cpu
from tests.bench.figures import Sample
from tests.bench.image_files import ImageOnDisk
from tests.bench.meters import ProcessMeter, ScratchMeter, used_space
from tests.bench.profile import profile
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
            packs_before = _pack_bytes(service)
            cpu = tree_cpu(service.pid)
            names = {service.pid: "gateway", **dict.fromkeys(service.workers(), "worker")}
            with (
                ScratchMeter([service.root / name for name in ("cache", "expand")]) as scratch,
                ProcessMeter(service.pid, names) as processes,
            ):
                image_id, wall = self._pull(service, self.image.name)
            file = service.images / f"{image_id}.squashfs"
            report = _report(service, image_id)
            figures = {
                "wall": wall,
                "cpu": tree_cpu(service.pid) - cpu,
                **self._amounts(file, requests),
                **self._memory(service),
                "scratch": scratch.bytes,
                "scratch files": scratch.files,
                **step_figures(report["steps"], wall),
            }
            new_packs = _pack_bytes(service) - packs_before
            figures |= self._scratch_limits(figures["layer bytes"], figures["size"], new_packs)
            if self.remote is not None:
                figures["sent bytes"] = self.remote.link.sent_bytes() - sent_before
            if base_id:
                figures["new bytes"] = new_bytes(service.images / f"{base_id}.squashfs", file)
            stages = report["seconds"]
            parts = profile(processes.looks, stages, report["steps"])
            return Sample(figures, stages, tuple(parts))

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

    def _scratch_limits(self, layers: float, result: float, packs: int) -> dict[str, float]:
        """Return the limits of scratch disk and files for bytes of layers, result and packs."""
        files_of_layer = 4 if packs else 2
        return {
            "scratch limit": layers + result + packs,
            "scratch files limit": files_of_layer * len(self.image.layers) + 10,
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


def step_figures(steps: Mapping[str, float], wall: float) -> dict[str, float]:
    """Return the figures that come from the steps of a pull, as far as it has these steps.

    `wall` is the seconds of the whole pull.
    """
    figures: dict[str, float] = {}
    if "pack" in steps:
        composing = ("plan", "compose", "check")
        figures["packing"] = steps["pack"]
        figures["composing"] = sum(steps.get(name, 0.0) for name in composing)
    if REMOTE_CHECK in steps:
        figures["remote check"] = steps[REMOTE_CHECK]
        figures["wall without remote check"] = wall - steps[REMOTE_CHECK]
    return figures


def _pack_bytes(service: Service) -> int:
    """Return the bytes of the packs that a gateway has, with their sidecars."""
    return used_space(list((service.root / "cache").rglob("packs")))[0]


def _report(service: Service, image_id: str) -> dict[str, dict[str, float]]:
    """Return what the record of an image tells of its pull: the seconds of stages and steps."""
    with closing(connect(service.root / "state" / "shiftergw.sqlite")) as store:
        rows = store.execute("SELECT document FROM images").fetchall()
    documents: list[dict[str, Any]] = [json.loads(text) for (text,) in rows]
    reports = [document.get("report") for document in documents if document["id"] == image_id]
    report: dict[str, dict[str, float]] = next(report for report in reports if report)
    return report
