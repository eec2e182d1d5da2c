"""A site whose worker is killed in the middle of a pull, and what must hold of its files then."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from twisted.internet import reactor

from shiftergw.build.converted import converted_groups
from shiftergw.build.pack_files import PackFiles, find_pack, pack_groups
from shiftergw.model.build_options import PackerName
from shiftergw.model.images import Digest
from shiftergw.model.references import ImageReference
from shiftergw.model.requests import PullRequest
from shiftergw.oci.meta import read_meta
from shiftergw.store.sqlite.store import SqliteStore
from tests import forks
from tests.build.parts import running_in
from tests.running_service import SYSTEM, Service
from tests.sshd import Sshd, remote_section

WORKER_SECONDS = 60.0
ORPHAN_SECONDS = 20.0
"""Seconds within which programs end whose worker was killed."""

real: Any = reactor


@dataclass(frozen=True)
class KilledSite:
    """The directories of a site, without a gateway: its worker runs once for each record.

    Images come from OCI layouts in `layouts`, and go to `images`, which may be another disk. With
    `sshd` they are delivered by it. `packer` makes the packs.
    """

    root: Path
    layouts: Path
    images: Path
    sshd: Sshd | None = None
    packer: PackerName = "mksquashfs"

    def prepare(self) -> None:
        """Write the configuration."""
        self.root.mkdir(exist_ok=True)
        self.images.mkdir(exist_ok=True, parents=True)
        system = (
            {"accesstype": "local", "local": {"imageDir": str(self.images)}}
            if self.sshd is None
            else remote_section(self.sshd, self.sshd.port, self.images)
        )
        squashfs = {"compressor": "zstd", "level": 1}
        locations = {"site": {"remotetype": "oci-layout", "url": self.layouts.as_uri()}}
        changes = {
            "Builder": "packs",
            "Packer": self.packer,
            "Platforms": {SYSTEM: {**system, "squashfs": squashfs}},
        }
        Service(self.root, locations, changes)

    def copy_to(self, site: KilledSite) -> None:
        """Copy the files of this site to another one, with their times and links."""
        subprocess.run(["cp", "-a", self.root, site.root], check=True)
        if not self.images.is_relative_to(self.root):
            subprocess.run(["cp", "-a", self.images, site.images], check=True)
        site.prepare()

    def remove(self) -> None:
        """Remove all files."""
        for directory in (self.root, self.images):
            shutil.rmtree(directory, ignore_errors=True)

    async def claim(self, name: str) -> str:
        """Put a pull into the store; return the key of its record."""
        async with _Store(self) as store:
            reference = ImageReference.parse(name)
            record, _ = await store.claim(PullRequest(SYSTEM, "docker", reference, 2001), 1.0)
            return record.key

    async def requeue(self, key: str) -> None:
        """Give a record back whose worker was killed, as the gateway does."""
        async with _Store(self) as store:
            await store.requeue(key, 1, "The worker was killed.", died=True)

    def work(self, key: str, point: str = "-") -> tuple[int, Counter[str]]:
        """Run a worker on a record; return its exit code and the operations of each stage.

        `point` is one of `tests.end_to_end.doomed_worker`.
        """
        counts = self.root / f"counts-{key}"
        arguments = [point, str(counts), f"{self.root}/", "--config", str(self.config)]
        job = json.dumps({"record": key}).encode() + b"\n"
        result = forks.run(
            "doomed worker", arguments, env=os.environ, seconds=WORKER_SECONDS, stdin=job,
            cwd=self.root,
        )  # fmt: skip
        (self.root / "log").write_bytes(result.stderr)
        done = Counter(json.loads(counts.read_text())) if counts.exists() else Counter[str]()
        counts.unlink(missing_ok=True)
        return result.returncode, done

    @property
    def config(self) -> Path:
        """Return the file of the configuration."""
        return self.root / "imagemanager.json"

    @property
    def packs(self) -> dict[str, bytes]:
        """Return the packs that have their final name, by name."""
        return _contents(self._files("*.pack"))

    def whole_packs(self) -> dict[str, int]:
        """Return the inodes of the packs that can be used, by name."""
        packs = [path.with_suffix(".pack") for path in self._files("*.index")]
        return {path.name: path.stat().st_ino for path in packs if path.exists()}

    @property
    def converted_files(self) -> dict[str, bytes]:
        """Return the converted files that have their final name, by name."""
        return _contents(self._files("*.squashfs"))

    @property
    def delivered_files(self) -> dict[str, bytes]:
        """Return the delivered images, by name."""
        return _contents(self.images.glob("*.squashfs"))

    def documents(self) -> dict[str, dict[str, Any]]:
        """Return the records of the store by their keys."""
        with closing(sqlite3.connect(self.root / "state" / "shiftergw.sqlite")) as store:
            rows = store.execute("SELECT key, document FROM images").fetchall()
        return {key: json.loads(text) for key, text in rows}

    def is_ready(self, key: str) -> bool:
        """Return whether the image of this record is READY."""
        return bool(self.documents()[key]["status"] == "READY")

    def check(self, reference: KilledSite) -> None:
        """Check that all files with final names are whole, and that READY records have theirs.

        The files are the same on each site, so those of `reference` are what they must be.
        """
        assert self.packs.items() <= reference.packs.items()
        assert self.converted_files.items() <= reference.converted_files.items()
        assert self.delivered_files.items() <= reference.delivered_files.items()
        for path in self._files("*.index"):
            digest, _, key = path.stem.partition("-")
            files = PackFiles(path.parent, Digest("sha256", digest), key)
            assert not files.pack.exists() or find_pack(files, Event()) is not None
        for path in self._files("sha256/*"):
            if "." not in path.name:
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        for path in self.images.glob("*.meta"):
            read_meta(path.read_bytes())
        for document in self.documents().values():
            if document["status"] == "READY":
                content = self.delivered_files[f"{document['id']}.squashfs"]
                assert hashlib.sha256(content).hexdigest() == document["sha256"]
                assert (self.images / f"{document['id']}.meta").exists()

    def running_programs(self) -> list[str]:
        """Return the command lines of programs that still work for a worker."""
        return running_in(self.root)

    def partial_data(self) -> list[Path]:
        """Return the incomplete packs, images and blobs of the gateway."""
        return [path for path in self._files("*") if path.suffix in {".part", ".partial"}]

    def sweep(self) -> None:
        """Remove converted files and packs, as if none was used for long."""
        converted_groups(self.root / "expand").sweep(math.inf)
        for directory in {path.parent for path in self._files("*.pack")}:
            pack_groups(directory).sweep(math.inf)

    def temporaries(self) -> list[Path]:
        """Return the temporary files of the gateway, and those in the image directory."""
        names = [path for path in self.images.iterdir() if ".partial." in path.name]
        return names + self._files(".*")

    def _files(self, pattern: str) -> list[Path]:
        """Return the files of the gateway whose paths match."""
        places = (self.root / "expand", self.root / "cache")
        return [path for place in places for path in place.rglob(pattern) if path.is_file()]


def _contents(paths: Iterable[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


class _Store:
    """The store of a site, open while the context lasts."""

    def __init__(self, site: KilledSite) -> None:
        (site.root / "state").mkdir(exist_ok=True)
        self._store = SqliteStore(real, site.root / "state" / "shiftergw.sqlite")

    async def __aenter__(self) -> SqliteStore:
        await self._store.startService()
        return self._store

    async def __aexit__(self, *_: object) -> None:
        await self._store.stopService()
