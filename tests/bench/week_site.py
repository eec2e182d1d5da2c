"""A site with three systems, whose gateway lives through a week."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from tests.bench import contents
from tests.bench.commands import NoMeasurement, tree_cpu
from tests.bench.gateway import BUILDERS, PullFailed
from tests.bench.image_files import ImageOnDisk, LayerOnDisk, make_layer, push
from tests.bench.tools import ZSTD_3
from tests.bench.week_plan import REMOTE, SYSTEMS, Day, LayerPlan, Push
from tests.distance import RATE, Distance
from tests.registries import DockerRegistry
from tests.running_service import ALICE, FINAL, Service
from tests.sshd import Sshd, remote_section

ROUND_TRIP = 0.001
NIGHT = 16 * 3600.0
"""Seconds of a night, in which nothing is pulled, and converted files and pulls become old."""

_SHORTEST_POLL, _LONGEST_POLL = 0.02, 0.25
_BLOCK = 512
_OLDER_PULLS = """
UPDATE images
SET document = json_set(document, '$.last_pull', json_extract(document, '$.last_pull') - ?)
WHERE json_extract(document, '$.last_pull') IS NOT NULL
"""


class WeekLayers:
    """The layers of a week on the disk, made of real files, and the images in a registry."""

    def __init__(self, where: Path, registry: DockerRegistry) -> None:
        """Make layers below `where`, and push images into `registry`."""
        self.sizes: dict[str, int] = {}
        self._where = where
        self._registry = registry
        self._layers: dict[str, LayerOnDisk] = {}
        patterns = (*contents.LIBRARIES, *contents.SHARE, *contents.PROGRAMS)
        self._files = itertools.cycle(contents.real_files(patterns))

    def push(self, event: Push) -> None:
        """Push an image; its tag moves."""
        layers = [self._layer(plan) for plan in event.layers]
        repository, _, tag = event.name.rpartition(":")
        layout = self._where / f"layout-{repository.replace('/', '-')}-{tag}"
        shutil.rmtree(layout, ignore_errors=True)
        push(self._registry, self._where, ImageOnDisk(event.name, layers))

    def _layer(self, plan: LayerPlan) -> LayerOnDisk:
        if plan.name not in self._layers:
            fill = partial(self._fill, plan.size)
            if plan.origin is not None:
                fill = partial(_rebuild, self._layer(plan.origin).tree, plan)
            layer = make_layer(self._where, plan.name, fill)
            self._layers[plan.name] = layer
            self.sizes[layer.digest] = layer.size
        return self._layers[plan.name]

    def _fill(self, size: int, tree: Path) -> None:
        """Copy the next real files into a tree, until it has `size` bytes."""
        for path in self._files:
            with suppress(OSError):
                length = path.lstat().st_size
                if length > size:
                    continue
                target = tree / path.relative_to("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.is_symlink():
                    target.symlink_to(path.readlink())
                else:
                    shutil.copyfile(path, target)
                size -= length
            if size < _BLOCK:
                return


def _rebuild(origin: Path, plan: LayerPlan, tree: Path) -> None:
    """Copy a tree, replace a share of its files, and add one."""
    shutil.copytree(origin, tree, symlinks=True, dirs_exist_ok=True)
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    step = round(1 / plan.share) if plan.share else len(files) + 1
    for path in files[::step] if plan.share else ():
        path.write_bytes(path.read_bytes()[::-1])
    (tree / "build").write_text(plan.name)


@dataclass
class WeekFigures:
    """What a week has cost; amounts are in bytes, times in seconds.

    `conversions` are pulls after which a system has another image than before. `sent_bytes` crossed
    the line to the remote system. `gateway_bytes` is the most that cache and scratch directories
    had at the end of a day, `image_bytes` what the image directories have in the end.
    """

    pulls: int = 0
    conversions: int = 0
    downloaded_bytes: int = 0
    cpu: float = 0.0
    waiting: float = 0.0
    image_sizes: int = 0
    sent_bytes: int = 0
    gateway_bytes: int = 0
    image_bytes: int = 0


@dataclass
class WeekSite:
    """A gateway, its registry, and its systems."""

    where: Path
    builder: str
    registry: DockerRegistry
    layers: WeekLayers
    limit: float
    figures: WeekFigures = field(default_factory=WeekFigures)
    _ids: dict[tuple[str, str], str] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        """Start the remote system, and write the configuration of the gateway."""
        sshd = self._stack.enter_context(Sshd())
        self._link = self._stack.enter_context(Distance(sshd.port, ROUND_TRIP, RATE))
        sshd.trust_port(self._link.port)
        self._directories = {name: self.where / f"images-{name}" for name in SYSTEMS}
        systems: dict[str, Any] = {}
        squashfs = {"compressor": ZSTD_3.name, "level": ZSTD_3.level}
        for name, directory in self._directories.items():
            directory.mkdir(parents=True)
            system = (
                remote_section(sshd, self._link.port, directory)
                if name == REMOTE
                else {"accesstype": "local", "local": {"imageDir": str(directory)}}
            )
            systems[name] = {**system, "squashfs": squashfs, **BUILDERS[self.builder]}
        location = {"remotetype": "dockerv2", "url": f"http://{self.registry.host}"}
        changes = {"Platforms": systems, "PullUpdateTimeout": 1}
        self._service = Service(self.where, {"registry": location}, changes)
        return self

    def __exit__(self, *failure: object) -> None:
        """Stop everything."""
        self._service.stop()
        self._stack.close()

    def spend_day(self, day: Day) -> None:
        """Push what is new, start the gateway, pull, and stop it: so its workers sweep each day."""
        for event in day.pushes:
            self.layers.push(event)
        begin = len(self.registry.blobs_asked_for())
        sent_before = self._link.sent_bytes()
        self._service.start()
        for request in day.pulls:
            self._pull(request.system, request.name)
        figures = self.figures
        figures.cpu += tree_cpu(self._service.pid)
        self._service.stop()
        digests = self.registry.blobs_asked_for()[begin:]
        figures.downloaded_bytes += sum(self.layers.sizes.get(digest, 0) for digest in digests)
        figures.sent_bytes += self._link.sent_bytes() - sent_before
        scratch = [self.where / name for name in ("cache", "expand")]
        figures.gateway_bytes = max(figures.gateway_bytes, used_bytes(scratch))
        figures.image_bytes = used_bytes(list(self._directories.values()))
        make_older(self.where / "expand", NIGHT)
        with closing(sqlite3.connect(self.where / "state" / "shiftergw.sqlite")) as store:
            store.execute(_OLDER_PULLS, (NIGHT,))
            store.commit()

    def _pull(self, system: str, name: str) -> None:
        """Pull an image, and count the pull."""
        figures = self.figures
        path = f"/api/pull/{system}/docker/{quote(name, safe='')}/"
        begin = time.monotonic()
        while True:
            status, answer = self._service.get(path, ALICE, "POST")
            if status != 200:
                raise PullFailed(f"the pull of {name} was refused: {status} {answer}")
            seconds = time.monotonic() - begin
            if answer["status"] in FINAL:
                break
            if seconds > self.limit:
                raise NoMeasurement(f"the pull of {name} takes more than {self.limit:.0f} s")
            time.sleep(min(max(seconds * 0.05, _SHORTEST_POLL), _LONGEST_POLL))
        if answer["status"] != "READY":
            raise PullFailed(f"the pull of {name} failed: {answer.get('status_message', '')}")
        figures.pulls += 1
        figures.waiting += seconds
        image_id = str(answer["id"])
        if self._ids.get((system, name)) != image_id:
            self._ids[system, name] = image_id
            figures.conversions += 1
            file = self._directories[system] / f"{image_id}.squashfs"
            figures.image_sizes += file.stat().st_size


def used_bytes(directories: Sequence[Path]) -> int:
    """Return the bytes that the files of directories take on the disk; links count once."""
    blocks = {}
    for path in _files(directories):
        status = path.stat()
        blocks[status.st_dev, status.st_ino] = status.st_blocks
    return sum(blocks.values()) * _BLOCK


def make_older(directory: Path, seconds: float) -> None:
    """Set the times of all files back."""
    for path in _files([directory]):
        status = path.stat()
        os.utime(path, (status.st_atime - seconds, status.st_mtime - seconds))


def _files(directories: Sequence[Path]) -> Iterator[Path]:
    for directory in directories:
        yield from (path for path in directory.rglob("*") if path.is_file())
