"""A pull for a remote system gives the same answers, and its files are on that system."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from sqlite3 import connect
from typing import Any

import pytest

from shiftergw.oci.meta import read_meta
from tests.end_to_end.test_pull import flip, listing, simple_layers
from tests.images import oci_layout
from tests.parts import need
from tests.registries import DockerRegistry
from tests.running_service import SYSTEM, Service, until
from tests.sshd import Sshd


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Run the system's SSH server."""
    with Sshd() as running:
        yield running


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Run a registry with an image for each test."""
    root = tmp_path_factory.mktemp("registry")
    with DockerRegistry(root / "data") as running:
        for name in ("plain", "damaged", "refused", "expired"):
            oci_layout(root / name, simple_layers(name.encode()), config={"Env": ["A=1"]})
            running.push(root / name, f"lib/{name}:1")
        running.push(root / "damaged", "lib/damaged:same")
        yield running


@pytest.fixture(
    scope="module",
    params=[("conch", "sftp"), ("openssh", "sftp"), ("conch", "scp")],
    ids="-".join,
)
def service(
    registry: DockerRegistry,
    sshd: Sshd,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Service]:
    """Run a gateway whose only system is remote, with each transport and protocol."""
    need("mksquashfs")
    need("ssh")
    root = tmp_path_factory.mktemp("service")
    transport, transfer = request.param
    locations = {"registry": {"remotetype": "dockerv2", "url": f"http://{registry.host}"}}
    system: dict[str, Any] = {
        "accesstype": "remote",
        "admins": ["root"],
        "host": ["127.0.0.1"],
        "squashfs": {"compressor": "gzip", "level": 1},
        "ssh": {
            "username": sshd.user,
            "imageDir": str(root / "images"),
            "key": str(sshd.key),
            "port": sshd.port,
            "knownHosts": str(sshd.known_hosts),
            "transport": transport,
            "transfer": transfer,
        },
    }
    changes = {"Platforms": {SYSTEM: system}, "DeliveryWait": 0}
    with Service(root, locations, changes) as running:
        yield running


def record(service: Service, image_id: str) -> dict[str, Any]:
    """Return the only record of an image in the store."""
    with closing(connect(service.root / "state" / "shiftergw.sqlite")) as store:
        rows = store.execute("SELECT document FROM images").fetchall()
    documents: list[dict[str, Any]] = [json.loads(text) for (text,) in rows]
    (document,) = [document for document in documents if document["id"] == image_id]
    return document


def test_a_remote_system_has_the_image(service: Service) -> None:
    """A pull ends READY, and the image on the system has the SHA-256 of the record."""
    answer = service.pull("lib/plain:1")
    assert answer["status"] == "READY", (answer, service.log.read_text())
    image = service.images / f"{answer['id']}.squashfs"
    image_record = record(service, answer["id"])
    assert hashlib.sha256(image.read_bytes()).hexdigest() == image_record["sha256"]
    assert image_record["report"]["verification"] == {"method": "sha256", "reason": ""}
    assert listing(image) == ["bin", "etc", "etc/issue"]
    meta = service.images / f"{answer['id']}.meta"
    assert read_meta(meta.read_bytes()).env == ("A=1",)
    assert {path.stat().st_mode & 0o7777 for path in (image, meta)} == {0o600}
    assert service.leftovers() == []


def test_a_damaged_image_is_delivered_again(service: Service, registry: DockerRegistry) -> None:
    """A changed byte on the system is noticed, and the converted file here replaces the image."""
    answer = service.pull("lib/damaged:1")
    image = service.images / f"{answer['id']}.squashfs"
    (file,) = (service.root / "expand").glob(f"{answer['id']}*.squashfs")
    inode, requests = file.stat().st_ino, registry.blob_requests()
    flip(image)
    assert service.pull("lib/damaged:same")["id"] == answer["id"]
    image_record = record(service, answer["id"])
    assert hashlib.sha256(image.read_bytes()).hexdigest() == image_record["sha256"]
    assert file.stat().st_ino == inode
    assert registry.blob_requests() - requests <= 1  # the configuration
    assert image_record["modified"] == int(image.stat().st_mtime)


def test_expired_images_leave_a_remote_system(service: Service) -> None:
    """The files of an expired image are removed from the system."""
    answer = service.pull("lib/expired:1")
    assert answer["status"] == "READY"
    assert list(service.images.glob(f"{answer['id']}.*"))
    status, _ = service.get(
        f"/api/expire/{SYSTEM}/docker/lib%2Fexpired%3A1/", "good:root:root::0:0"
    )
    assert status == 200
    until(lambda: not list(service.images.glob(f"{answer['id']}.*")), 30, "the removal")


def test_a_remote_system_that_is_down(service: Service, sshd: Sshd) -> None:
    """Without `DeliveryWait` a pull fails at once, with a message that names no host."""
    # This is the last test of a gateway, which takes the system for unavailable afterwards.
    sshd.stop()
    try:
        answer = service.pull("lib/refused:1")
    finally:
        sshd.start()
    assert answer["status"] == "FAILURE"
    assert f"the system {SYSTEM}: its host does not answer" in answer["status_message"]
    assert "127.0.0.1" not in str(answer)
    assert "DeliveryWait" in answer["remedy"]
