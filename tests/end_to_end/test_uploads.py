"""Uploads and imports through a running gateway and its workers, killed at any moment."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.images import entry, tar_of
from tests.parts import need
from tests.running_service import ALICE, BOB, FINAL, POLL_PAUSE, SYSTEM, Service, until

LOCATIONS = {"registry": {"remotetype": "dockerv2", "url": "http://127.0.0.1:9"}}
"""No registry listens there: an image can come from nowhere but the uploads."""

LONG = os.environ.get("SHIFTERGW_LONG") == "1"


def saved_image(*names: str, size: int = 100_000) -> bytes:
    """Return an archive as `docker save` writes it: one image with these names, as random bytes."""
    dice = random.Random(size)
    content = b"".join(dice.randbytes(min(1 << 20, size - n)) for n in range(0, size, 1 << 20))
    layer = tar_of([entry("etc"), entry("etc/motd", content)])
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["GREETING=hello"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": names, "Layers": ["one/layer.tar"]}]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            ("one/layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class UploadService(Service):
    """A gateway, and the requests of a client; `byte_count` is the size of all chunks."""

    byte_count = 0

    def declare(self, content: bytes, kind: str = "docker-archive", user: str = ALICE) -> Any:
        """Declare an upload; return the answer."""
        digest = hashlib.sha256(content).hexdigest()
        body = json.dumps({"size": len(content), "sha256": digest, "kind": kind}).encode()
        status, answer = self.ask(f"/api/upload/{SYSTEM}/", user, "POST", body)
        assert status == 200, answer
        return answer

    def send(self, upload: Any, chunk: bytes, user: str = ALICE) -> tuple[int, Any]:
        """Send a chunk at the offset of the upload."""
        self.byte_count += len(chunk)
        path = f"/api/upload/{SYSTEM}/{upload['upload']}?offset={upload['offset']}"
        return self.ask(path, user, "PUT", chunk)

    def upload(self, content: bytes, kind: str = "docker-archive", user: str = ALICE) -> str:
        """Upload a file and return the id of the upload."""
        upload = self.declare(content, kind, user)
        while upload["offset"] < len(content):
            start = upload["offset"]
            status, upload = self.send(upload, content[start : start + (4 << 20)], user)
            assert status == 200, upload
        return str(upload["upload"])

    def wait_for_end(
        self, name: str, members: dict[str, Any], user: str = ALICE, route: str = "pull"
    ) -> Any:
        """Poll until an image is made, or has failed; return the last answer."""

        def final_answer() -> Any:
            path = f"/api/{route}/{SYSTEM}/custom/{name}/"
            status, answer = self.ask(path, user, "POST", json.dumps(members).encode())
            assert status in {0, 200}, answer
            return answer if status and answer["status"] in FINAL else None

        return until(final_answer, 60, f"the end of the work on {name}", POLL_PAUSE)

    def image_of(self, name: str, user: str = ALICE) -> tuple[int, Any]:
        """Look an image of type custom up."""
        return self.get(f"/api/lookup/{SYSTEM}/custom/{name}/", user)

    @property
    def spool(self) -> list[str]:
        """Return the names in the spool."""
        return sorted(path.name for path in (self.root / "state" / "uploads").iterdir())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UploadService]:
    """Run a gateway."""
    need("mksquashfs")
    changes = {"ImportUsers": "all", "MaxUploadSize": "50MB"}
    with UploadService(tmp_path_factory.mktemp("uploads"), LOCATIONS, changes) as running:
        yield running


def listing(path: Path) -> str:
    """Return what `unsquashfs` lists of an image."""
    command = [need("unsquashfs"), "-ll", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_an_archive_of_docker_save_becomes_an_image(service: UploadService) -> None:
    """Uploaded in chunks, private to its user, delivered with its settings; the spool is empty."""
    content = saved_image("app:1", size=9_000_000)
    upload_id = service.upload(content)
    members = {"upload": upload_id, "allowed_uids": "2005"}
    ready = service.wait_for_end("mine:1", members)
    assert (ready["status"], ready["ENV"]) == ("READY", ["GREETING=hello"])
    assert sorted(ready["userACL"]) == [2001, 2005]
    assert "etc/motd" in listing(service.images / f"{ready['id']}.squashfs")
    meta = (service.images / f"{ready['id']}.meta").read_text()
    assert "USERACL: 2001,2005" in meta or "USERACL: 2005,2001" in meta
    assert service.image_of("mine:1")[1]["id"] == ready["id"]
    assert service.image_of("mine:1", BOB)[0] == 404
    assert service.wait_for_end("mine:1", members)["status"] == "READY"
    assert service.spool == []


def test_a_selector_and_a_public_upload(service: UploadService) -> None:
    """A selector names one of the images of an archive; `public` opens it."""
    upload_id = service.upload(saved_image("app:1", "app:2"))
    failure = service.wait_for_end("open:1", {"upload": upload_id, "selector": "app:3"})
    assert failure["status"] == "FAILURE"
    assert "app:1" in failure["cause"] + failure["remedy"]
    members = {"upload": upload_id, "selector": "app:2", "public": True}
    ready = until(
        lambda: (
            answer
            if (answer := service.wait_for_end("open:1", members))["status"] == "READY"
            else None
        ),
        30,
        "the second try",
    )
    assert service.image_of("open:1", BOB)[1]["id"] == ready["id"]
    status, answer = service.ask(f"/api/pull/{SYSTEM}/custom/open:1/", BOB, "POST", b"{}")
    assert (status, answer["status"]) == (200, "READY")


def test_a_file_that_changes_during_its_upload(service: UploadService) -> None:
    """A file that changed during its upload fails with a message, and the upload is removed."""
    content = bytearray(saved_image("app:1", size=50_000))
    upload = service.declare(bytes(content))
    content[20_000] ^= 1
    assert service.send(upload, bytes(content))[0] == 200
    failure = service.wait_for_end("broken:1", {"upload": upload["upload"]})
    assert failure["status"] == "FAILURE"
    assert "digest" in failure["cause"]
    assert service.get(f"/api/upload/{SYSTEM}/{upload['upload']}")[0] == 404


def test_limits(service: UploadService) -> None:
    """A file that is too large is refused before a byte of it is sent."""
    body = {"size": 60_000_000, "sha256": "ab" * 32, "kind": "sif"}
    status, answer = service.ask(f"/api/upload/{SYSTEM}/", ALICE, "POST", json.dumps(body).encode())
    assert (status, answer["code"]) == (413, "too-large")


def test_a_name_of_another_user(service: UploadService) -> None:
    """Bob cannot take Alice's name, neither with an upload nor from a registry."""
    ready = service.wait_for_end(
        "hers:1", {"upload": service.upload(saved_image("a", size=70_000))}
    )
    assert ready["status"] == "READY"
    upload_id = service.upload(saved_image("b", size=80_000), user=BOB)
    for members in ({"upload": upload_id}, {}):
        body = json.dumps(members).encode()
        status, answer = service.ask(f"/api/pull/{SYSTEM}/custom/hers:1/", BOB, "POST", body)
        assert (status, answer["code"]) == (403, "not-allowed")
    check: dict[str, Any] = {"name": "hers:1"}
    for declaration in (check, {**check, "size": 1, "sha256": "ab" * 32}):
        body = json.dumps(declaration).encode()
        status, answer = service.ask(f"/api/upload/{SYSTEM}/", BOB, "POST", body)
        assert (status, answer["code"]) == (403, "not-allowed")
        assert service.ask(f"/api/upload/{SYSTEM}/", ALICE, "POST", body)[0] == 200
    assert service.image_of("hers:1")[1]["id"] == ready["id"]


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """Yield a directory that every user may enter."""
    path = Path(tempfile.mkdtemp(prefix="shiftergw-import-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def squashfs_file(directory: Path, mode: int = 0o644) -> Path:
    """Make a squashfs file with one directory and one file."""
    tree = directory / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "motd").write_text("hello")
    (tree / "etc" / "motd").chmod(0o755 | stat.S_ISUID)
    file = directory / "image.squashfs"
    command = [need("mksquashfs"), str(tree), str(file), "-noappend", "-quiet"]
    subprocess.run(command, check=True, capture_output=True)
    file.chmod(mode)
    return file


def test_the_documented_import(service: UploadService, public_directory: Path) -> None:
    """The original's request imports a public file; the image is built anew, for all users."""
    file = squashfs_file(public_directory)
    members = {"filepath": str(file), "format": "squashfs"}
    ready = service.wait_for_end("imported:1", members, route="doimport")
    assert ready["status"] == "READY", ready
    image = service.images / f"{ready['id']}.squashfs"
    assert image.read_bytes() != file.read_bytes()
    (line,) = [line for line in listing(image).splitlines() if line.endswith("/etc/motd")]
    assert line.startswith("-rwxr-xr-x")
    assert service.image_of("imported:1", BOB)[1]["id"] == ready["id"]


def test_files_that_are_not_imported(service: UploadService, public_directory: Path) -> None:
    """Private files, links, and types of registries are refused; the remedy is an upload."""
    file = squashfs_file(public_directory, 0o600)
    link = public_directory / "link"
    link.symlink_to("/etc/passwd")
    for path in (file, link, public_directory, Path("/root/.bashrc"), Path("/absent")):
        body = json.dumps({"filepath": str(path), "format": "squashfs"}).encode()
        status, answer = service.ask(f"/api/doimport/{SYSTEM}/custom/x:1/", ALICE, "POST", body)
        assert (status, answer["code"]) == (403, "not-allowed"), path
        assert "shiftergw import" in answer["error"]
    body = json.dumps({"filepath": str(file), "format": "squashfs"}).encode()
    status, _ = service.ask(f"/api/doimport/{SYSTEM}/docker/x:1/", ALICE, "POST", body)
    assert status == 400


@pytest.mark.parametrize("kills", [10 if LONG else 1])
def test_a_gateway_that_is_killed_during_an_upload(tmp_path: Path, kills: int) -> None:
    """After each kill the client continues at its offset, and sends only missing bytes."""
    size = (300 if LONG else 20) * 10**6
    content = saved_image("app:1", size=size)
    step = (16 << 20) if LONG else (1 << 20)
    dice = random.Random(kills)
    points = sorted(dice.sample(range(1, len(content) // step), kills))
    service = UploadService(tmp_path / "site", LOCATIONS)
    with service:
        upload, chunks = service.declare(content), 0
        while upload["offset"] < len(content):
            start = upload["offset"]
            status, upload = service.send(upload, content[start : start + step])
            assert status == 200, upload
            chunks += 1
            if chunks in points:
                service.stop(signal.SIGKILL)
                service.start()
                upload = service.declare(content)
                assert upload["offset"] == min(chunks * step, len(content))
        assert service.byte_count == len(content)
        ready = service.wait_for_end("mine:1", {"upload": upload["upload"]})
        assert ready["status"] == "READY", ready


def test_a_worker_that_is_killed_during_the_job(tmp_path: Path) -> None:
    """The job starts again from the upload, which stays until the image is READY."""
    content = saved_image("app:1", size=20_000_000)
    service = UploadService(tmp_path / "site", LOCATIONS)
    with service:
        upload_id = service.upload(content)
        body = json.dumps({"upload": upload_id}).encode()
        path = f"/api/pull/{SYSTEM}/custom/mine:1/"

        def is_working() -> bool:
            _, answer = service.ask(path, ALICE, "POST", body)
            return answer is not None and answer["status"] not in {"INIT", "PENDING"}

        until(is_working, 30, "the begin of the work")
        for pid in service.workers():
            os.kill(pid, signal.SIGKILL)
        ready = service.wait_for_end("mine:1", {"upload": upload_id})
        assert ready["status"] == "READY", ready
        assert service.spool == []
        scratch = service.root / "expand" / "uploads"
        until(lambda: not list(scratch.glob("*")), 20, "the end of the clean-up")
