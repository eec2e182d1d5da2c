"""A system that has an image on the same base gets only the new bytes of the next one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import connect
from typing import Any
from urllib.parse import quote

import pytest

from tests.images import entry, oci_layout, tar_of
from tests.parts import small_disk
from tests.registries import DockerRegistry
from tests.running_service import ALICE, FINAL, POLL_PAUSE, Service, until
from tests.sshd import Sshd

LOCAL, REMOTE = "here", "far"
BASE_BYTES, NEW_BYTES = 5_000_000, 200_000
METADATA_BYTES = 12_288
"""Bytes of the metadata, and of the ends of ranges that are not whole blocks."""


@dataclass(frozen=True)
class Delivery:
    """A delivered file, and what its record reports of its delivery."""

    path: Path
    size: int
    copied_bytes: int
    sent_bytes: int


class Site:
    """A gateway that composes images of packs, for a local and a remote system.

    The local image directory is on a file system of its own, so that no file is a hard link.
    """

    def __init__(self, service: Service, registry: DockerRegistry, root: Path) -> None:
        """Use a running gateway, and a registry without images."""
        self._service = service
        self._registry = registry
        self._root = root
        self._count = 0

    def push(self, *layers: bytes) -> str:
        """Push an image of layers with these contents; return its name."""
        self._count += 1
        layout = self._root / f"layout-{self._count}"
        entries = [[entry(f"data-{number}", data)] for number, data in enumerate(layers)]
        oci_layout(layout, [tar_of(files) for files in entries])
        name = f"lib/image{self._count}:1"
        self._registry.push(layout, name)
        return name

    def pull(self, system: str, name: str) -> Delivery:
        """Pull an image; check that it is READY, and that its file has the recorded digest."""
        path = f"/api/pull/{system}/docker/{quote(name, safe='')}/"

        def final_answer() -> dict[str, Any] | None:
            _, answer = self._service.get(path, ALICE, "POST")
            return answer if answer["status"] in FINAL else None

        answer = until(final_answer, 60, f"the end of the pull of {name}", POLL_PAUSE)
        assert answer["status"] == "READY", (answer, self._service.log.read_text())
        document = self._record(system, answer["id"])
        file = self._root / system / f"{answer['id']}.squashfs"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == document["sha256"]
        report = document["report"]
        assert report["verification"]["method"] == "sha256"
        return Delivery(
            file, document["size"], *(report[name] for name in ("copied_bytes", "sent_bytes"))
        )

    def _record(self, system: str, image_id: str) -> dict[str, Any]:
        query = "SELECT document FROM images WHERE system = ? AND id = ?"
        with closing(connect(self._service.root / "state" / "shiftergw.sqlite")) as store:
            ((text,),) = store.execute(query, (system, image_id))
        document: dict[str, Any] = json.loads(text)
        return document

    def log_with(self, line: str) -> str:
        """Return the log of the gateway and its workers once it contains `line`."""
        return self._service.log_with(line)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run the gateway, the registry and the SSH server."""
    root = tmp_path_factory.mktemp("site")
    (root / REMOTE).mkdir()
    with (
        small_disk(root / LOCAL, "size=100m"),
        Sshd() as sshd,
        DockerRegistry(root / "data") as registry,
    ):
        squashfs = {"compressor": "gzip", "level": 1}
        ssh = {
            "username": sshd.user,
            "imageDir": str(root / REMOTE),
            "key": str(sshd.key),
            "port": sshd.port,
            "knownHosts": str(sshd.known_hosts),
        }
        platforms = {
            LOCAL: {
                "accesstype": "local",
                "squashfs": squashfs,
                "local": {"imageDir": str(root / LOCAL)},
            },
            REMOTE: {
                "accesstype": "remote",
                "squashfs": squashfs,
                "host": ["127.0.0.1"],
                "ssh": ssh,
            },
        }
        locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
        changes = {"Platforms": platforms, "Builder": "packs"}
        with Service(root / "service", locations, changes) as service:
            yield Site(service, registry, root)


@pytest.mark.parametrize("system", [LOCAL, REMOTE])
def test_only_new_bytes_are_delivered(site: Site, system: str) -> None:
    """The second image of a base costs its own layer and metadata, and one percent at most."""
    base_layer = os.urandom(BASE_BYTES)
    base = site.pull(system, site.push(base_layer))
    assert (base.copied_bytes, base.sent_bytes) == (0, base.size)
    image = site.pull(system, site.push(base_layer, os.urandom(NEW_BYTES)))
    assert image.copied_bytes + image.sent_bytes == image.size
    assert image.sent_bytes <= 1.01 * (NEW_BYTES + METADATA_BYTES)


def test_a_whole_file_is_delivered_without_a_sound_base(site: Site) -> None:
    """A base that is gone, or whose bytes have changed without a trace, fails no pull."""
    system = REMOTE
    base_layer = os.urandom(BASE_BYTES)
    base = site.pull(system, site.push(base_layer))
    base.path.unlink()
    image = site.pull(system, site.push(base_layer, os.urandom(NEW_BYTES)))
    assert (image.copied_bytes, image.sent_bytes) == (0, image.size)
    status, content = image.path.stat(), bytearray(image.path.read_bytes())
    content[BASE_BYTES // 2] ^= 1
    image.path.write_bytes(content)
    os.utime(image.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    next_image = site.pull(system, site.push(base_layer, os.urandom(NEW_BYTES)))
    assert (next_image.copied_bytes, next_image.sent_bytes) == (0, next_image.size)
    site.log_with(f"{next_image.path.name} is sent as a whole: ")
