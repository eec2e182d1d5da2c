"""The contract of `ImageSource`, on every source.

The archives and layouts are written by skopeo and umoci, or are those of `docker save`. With
`SHIFTERGW_LONG=1` it runs on every form of them.
"""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_twisted
import zstandard

from shiftergw.model.images import Digest
from shiftergw.model.references import ImageReference
from shiftergw.plumbing.threads import Threads
from shiftergw.sources.by_location import SourcesByLocation
from shiftergw.sources.local.layout_location import LayoutLocation
from tests.images import MadeImage, entry, make_image, oci_layout, tar_of
from tests.matrices import LONG
from tests.parts import need
from tests.registries import FakeRegistry
from tests.sources.contract import ENV, LAYERS, NOISE, ImageSourceContract, Sample
from tests.sources.local.opening import REFERENCE, make_squashfs, open_now, skopeo_copy
from tests.sources.registry.network import open_client
from tests.sources.saved_images import (
    Members,
    config_bytes,
    docker_1_9,
    docker_1_10,
    docker_25,
    podman,
    sif,
    sif_object,
    sif_partition,
)

CONFIG = config_bytes(LAYERS, env=[ENV])
NAMES = ["team/app:1"]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an OCI layout of the image."""
    directory = tmp_path_factory.mktemp("layout") / "layout"
    oci_layout(directory, LAYERS, config={"Env": [ENV]}, tag="1")
    return directory


@pytest.fixture(scope="module")
def made_image() -> MadeImage:
    """Return the image, for a registry."""
    return make_image(LAYERS, config={"Env": [ENV]})


class TestRegistryClient(ImageSourceContract):
    """The contract, on a registry."""

    @pytest_twisted.async_yield_fixture()
    async def sample(self, made_image: MadeImage) -> AsyncIterator[Sample]:
        """Yield a client of a registry."""
        registry = await FakeRegistry(made_image).start()
        async with open_client(f"http://{registry.host}") as client:
            yield Sample(client, ImageReference.parse("team/app"))
        await registry.stop()


Write = Callable[[Path, Path], str]
"""Writes the image of a layout below a directory, and returns the name of the source."""


def _layout(layout: Path, _: Path) -> str:
    return f"oci:{layout}:1"


def _umoci_layout(layout: Path, directory: Path) -> str:
    """Let umoci write a new manifest and configuration."""
    skopeo_copy(f"oci:{layout}:1", f"oci:{directory}/u:1")
    subprocess.run(
        [need("umoci"), "config", "--image", f"{directory}/u:1", "--config.cmd", "sh"],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return f"oci:{directory}/u:1"


def _skopeo_oci_archive(layout: Path, directory: Path) -> str:
    skopeo_copy(f"oci:{layout}:1", f"oci-archive:{directory}/o.tar:1")
    return f"oci-archive:{directory}/o.tar"


def _skopeo_docker_archive(layout: Path, directory: Path) -> str:
    skopeo_copy(f"oci:{layout}:1", f"docker-archive:{directory}/d.tar:team/app:1")
    return f"docker-archive:{directory}/d.tar:team/app:1"


def _skopeo_directory(layout: Path, directory: Path) -> str:
    skopeo_copy(f"oci:{layout}:1", f"dir:{directory}/d")
    return f"dir:{directory}/d"


def _write_archive(members: Members, pack: Callable[[bytes], bytes] = bytes) -> Write:
    def write(_: Path, directory: Path) -> str:
        path = directory / "saved"
        path.write_bytes(pack(tar_of(members)))
        return str(path)

    return write


MEMBERS = docker_1_10(LAYERS, CONFIG, NAMES)

SOURCES: dict[str, Write] = {
    "layout": _layout,
    "layout of umoci": _umoci_layout,
    "OCI archive of skopeo": _skopeo_oci_archive,
    "docker archive of skopeo": _skopeo_docker_archive,
    "directory of skopeo": _skopeo_directory,
    "docker 1.9": _write_archive(docker_1_9(LAYERS, NAMES, [ENV])),
    "docker 1.10": _write_archive(MEMBERS),
    "docker 25": _write_archive(docker_25(LAYERS, CONFIG, NAMES)),
    "podman": _write_archive(podman(LAYERS, CONFIG, NAMES)),
    "docker, gzip": _write_archive(MEMBERS, gzip.compress),
    "docker, zstd": _write_archive(MEMBERS, zstandard.ZstdCompressor().compress),
    "docker, compressed layers": _write_archive(
        [
            entry(info.name, gzip.compress(content))
            if info.name.endswith(".tar")
            else (info, content)
            for info, content in podman(LAYERS, CONFIG, NAMES)
        ]
    ),
}


_SHORT_FORM = (
    "layout",
    "OCI archive of skopeo",
    "docker archive of skopeo",
    "directory of skopeo",
    "docker, compressed layers",
)
"""Sources that are read in different ways; the others differ in what is found before that."""


@pytest.fixture(scope="module", params=SOURCES if LONG else _SHORT_FORM)
def source_name(
    request: pytest.FixtureRequest, layout: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Write an archive or a directory; return the name of the source."""
    return SOURCES[request.param](layout, tmp_path_factory.mktemp("source"))


class TestLocalSources(ImageSourceContract):
    """The contract, on layouts, directories and archives."""

    @pytest.fixture
    def sample(self, source_name: str, tmp_path: Path, threads: Threads) -> Sample:
        """Return a source."""
        return Sample(open_now(source_name, tmp_path / "scratch", threads), REFERENCE)


@pytest.fixture(scope="module")
def squashfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a squashfs file with the files of an image of Apptainer."""
    root = tmp_path_factory.mktemp("files")
    environment = root / ".singularity.d" / "env"
    environment.mkdir(parents=True)
    script = '#!/bin/sh\nexport GREETING="${GREETING:-"hello world"}"\n'
    (environment / "10-docker2singularity.sh").write_text(script)
    (root / "noise").write_bytes(NOISE)
    path = tmp_path_factory.mktemp("squashfs") / "files.sqfs"
    make_squashfs(root, path)
    return path


class TestSif(ImageSourceContract):
    """The contract, on a SIF file."""

    @pytest.fixture
    def sample(self, squashfs: Path, tmp_path: Path, threads: Threads) -> Sample:
        """Return a source, whose layer `sqfs2tar` makes."""
        need("sqfs2tar")
        path = tmp_path / "image.sif"
        path.write_bytes(
            sif(sif_object(0x4001, b"bootstrap"), sif_partition(squashfs.read_bytes()))
        )
        scratch = tmp_path / "scratch"
        source = open_now(f"sif:{path}", scratch, threads)
        layer = (scratch / "layer.tar").read_bytes()
        return Sample(source, REFERENCE, (Digest.of(layer),))


class TestLayoutLocation(ImageSourceContract):
    """The contract, on a location that is a directory, chosen by its name."""

    @pytest.fixture
    def sample(self, layout: Path, tmp_path: Path, threads: Threads) -> Sample:
        """Return the source of a site with such a location."""
        (tmp_path / "site" / "team").mkdir(parents=True)
        (tmp_path / "site" / "team" / "app").symlink_to(layout)
        location = LayoutLocation("site", tmp_path / "site", threads)

        def locate(reference: ImageReference) -> tuple[str, str]:
            first, _, rest = reference.name.partition("/")
            return first, rest

        source = SourcesByLocation(location, {"site": location}, locate)
        return Sample(source, ImageReference.parse("site/team/app:1"))
