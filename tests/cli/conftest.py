"""Fixtures of the tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftergw.cli.convert import default_document
from shiftergw.model.references import ImageReference
from tests.cli.signaled import Conversion
from tests.cli.upload_command import CONTENT, MIB
from tests.cli.upload_gateway import UploadGateway
from tests.images import entry, oci_layout, tar_of
from tests.munged import MungeDaemon
from tests.parts import need
from tests.registries import DockerRegistry


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's proxy out: the gateways of the tests are on its loopback."""
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def munged() -> Iterator[MungeDaemon]:
    """Give the munge daemon of the machine that users and gateway share."""
    with MungeDaemon() as running:
        yield running


@pytest.fixture
def gateway() -> Iterator[UploadGateway]:
    """Return a gateway that takes chunks of 1 MiB."""
    with UploadGateway(chunk=MIB).running() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file to upload."""
    path = tmp_path / "image.tar"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Run a registry that has `a/b:1`."""
    root = tmp_path_factory.mktemp("registry")
    oci_layout(root / "layout", [tar_of([entry("etc"), entry("etc/motd", b"hello\n")])])
    with DockerRegistry(root / "registry") as running:
        running.push(root / "layout", "a/b:1")
        yield running


@pytest.fixture
def conversion(registry: DockerRegistry, tmp_path: Path) -> Conversion:
    """Return a conversion that reaches `mksquashfs`, which never ends."""
    pid_file = tmp_path / "pid"
    script = tmp_path / "mksquashfs"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-version*) exec {need("mksquashfs")} -version;; esac\n'
        f"echo $$ > {pid_file}\nexec sleep 1000\n"
    )
    script.chmod(0o755)
    document = default_document(
        ImageReference.parse(f"{registry.host}/x"), tmp_path / "scratch", plain_http=True
    )
    (tmp_path / "scratch").mkdir()
    document |= {"DefaultImageLocation": registry.host, "Mksquashfs": str(script)}
    config = tmp_path / "imagemanager.json"
    config.write_text(json.dumps(document))
    out = tmp_path / "out" / "image"
    out.parent.mkdir()
    arguments = ["convert", "--config", str(config), "a/b:1", str(out)]
    return Conversion(arguments, pid_file, out, Path(document["ExpandDirectory"]))
