"""SIF files and archives of `docker save` of all ages, by the command line and a whole gateway."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.test_own_images import LOCATIONS, file_in, run
from tests.images import entry, tar_of
from tests.parts import need
from tests.running_service import BOB, Service
from tests.sources.local.opening import make_squashfs
from tests.sources.saved_images import (
    config_bytes,
    docker_1_9,
    docker_1_10,
    join_archives,
    sif,
    sif_object,
    sif_partition,
)

LAYERS = [
    tar_of([entry("etc"), entry("etc/motd", b"hello"), entry("etc/old", b"old")]),
    tar_of([entry("etc/.wh.old", b""), entry("etc/release", b"two")]),
]
ENVIRONMENT = ["GREETING=hello"]
CONFIG = config_bytes(LAYERS, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a gateway."""
    need("mksquashfs")
    with Service(tmp_path_factory.mktemp("gateway"), LOCATIONS) as running:
        yield running


@pytest.fixture(scope="module")
def file_system(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a squashfs with the files of an image of Apptainer."""
    need("sqfs2tar")
    root = tmp_path_factory.mktemp("files")
    scripts = root / ".singularity.d" / "env"
    scripts.mkdir(parents=True)
    (scripts / "90-environment.sh").write_text("export GREETING=hello\n")
    (root / "etc").mkdir()
    (root / "etc" / "motd").write_bytes(b"hello")
    path = tmp_path_factory.mktemp("squashfs") / "files.sqfs"
    make_squashfs(root, path)
    return path.read_bytes()


def test_a_sif_file(service: Service, file_system: bytes, tmp_path: Path) -> None:
    """The file system becomes an image, with its environment, for the named users."""
    file = tmp_path / "app.sif"
    file.write_bytes(sif(sif_object(0x4003, b'{"a": "b"}'), sif_partition(file_system)))
    code, image_id, errors = run(service, "pull", "--user", "2002", f"sif:{file}", "box:1")
    assert code == 0, errors
    assert file_in(service.images / f"{image_id}.squashfs", "etc/motd") == b"hello"
    metadata = (service.images / f"{image_id}.meta").read_text().splitlines()
    assert f"ENV: {ENVIRONMENT[0]}" in metadata
    assert run(service, "lookup", "custom:box:1", user=BOB)[:2] == (0, image_id)
    assert list((service.root / "state" / "uploads").iterdir()) == []


def test_a_sif_file_that_makes_no_image(service: Service, tmp_path: Path) -> None:
    """The error of the worker reaches the user: what the file is, and what to do."""
    encrypted_file = tmp_path / "secret.sif"
    encrypted_file.write_bytes(sif(sif_partition(b"?" * 100, file_system=5)))
    code, _, errors = run(service, "pull", f"sif:{encrypted_file}", "secret:1")
    assert code == 1
    assert "is encrypted" in errors
    assert "Build the image without encryption." in errors


def test_archives_of_several_ages(service: Service, tmp_path: Path) -> None:
    """An archive of Docker 1.10, and a packed one of Docker 1.9 with two images, become images."""
    (tmp_path / "docker-1.10.tar").write_bytes(tar_of(docker_1_10(LAYERS, CONFIG, ["app:1"])))
    old = join_archives(
        docker_1_9(LAYERS, ["app:1"], ENVIRONMENT), docker_1_9(LAYERS[:1], ["base:1"], salt="base")
    )
    (tmp_path / "docker-1.9.tar.gz").write_bytes(gzip.compress(old))
    ids: list[str] = []
    for source in ("docker-1.10.tar", "docker-1.9.tar.gz:app:1"):
        command = ["pull", f"docker-archive:{tmp_path / source}", f"ages:{len(ids)}"]
        code, image_id, errors = run(service, *command)
        assert code == 0, errors
        ids.append(image_id)
    for image_id in ids:
        image = service.images / f"{image_id}.squashfs"
        assert file_in(image, "etc/motd") == b"hello"
        assert file_in(image, "etc/release") == b"two"
        metadata = (service.images / f"{image_id}.meta").read_text().splitlines()
        assert f"ENV: {ENVIRONMENT[0]}" in metadata
    code, _, errors = run(service, "pull", str(tmp_path / "docker-1.9.tar.gz"), "ages:3")
    assert code == 1
    assert "app:1" in errors
    assert "base:1" in errors
