"""Files, directories and pipes as sources: their forms, and errors for other content."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred

from shiftergw.errors import (
    GatewayError,
    ImageNotFound,
    ImageTooLarge,
    ManifestInvalid,
    NoSpace,
    SourceUnreadable,
)
from shiftergw.model.build_options import BuildLimits
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import pause
from shiftergw.sources.local import scratch_files
from shiftergw.sources.local.docker_archive import DockerArchive
from shiftergw.sources.local.forms import form_of_archive, form_of_file
from shiftergw.sources.local.layout import LayoutFiles
from shiftergw.sources.local.sif import read_sif
from shiftergw.sources.local.trees import ArchiveTree
from tests.images import oci_layout, tar_of
from tests.matrices import examples
from tests.parts import small_disk
from tests.sources.local.opening import open_text, resolve, skopeo_copy
from tests.sources.registry.network import REACTOR
from tests.sources.saved_images import (
    config_bytes,
    docker_1_9,
    docker_1_10,
    docker_25,
    sif,
    sif_object,
    sif_partition,
)

LAYERS = [tar_of({"etc/motd": b"hello"})]
CONFIG = config_bytes(LAYERS)
ARCHIVE = tar_of(docker_1_10(LAYERS, CONFIG, ["a:1"]))


def zstd(content: bytes) -> bytes:
    """Pack with zstd."""
    return zstandard.ZstdCompressor().compress(content)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Return an OCI layout."""
    oci_layout(tmp_path / "layout", LAYERS)
    return tmp_path / "layout"


@pytest_twisted.ensureDeferred
async def test_the_content_of_a_path_decides_its_form(
    layout: Path, tmp_path: Path, threads: Threads
) -> None:
    """Without a prefix, the form of a file or directory is recognized by its content."""
    skopeo_copy(f"oci:{layout}:latest", f"dir:{tmp_path}/dir")
    skopeo_copy(f"oci:{layout}:latest", f"oci-archive:{tmp_path}/oci.tar:1")
    files = {path.name: path.read_bytes() for path in (tmp_path / "dir").iterdir()}
    (tmp_path / "dir.tar").write_bytes(tar_of(files))
    (tmp_path / "docker").write_bytes(ARCHIVE)
    (tmp_path / "docker25").write_bytes(tar_of(docker_25(LAYERS, CONFIG, ["a:1"])))
    kinds = {}
    for name in ("layout", "dir", "dir.tar", "oci.tar", "docker", "docker25"):
        image, _ = await resolve(await open_text(f"{tmp_path}/{name}", tmp_path, threads))
        kinds[name] = (image.source_kind, image.id)
    assert {name: kind for name, (kind, _) in kinds.items()} == {
        "layout": "oci",
        "dir": "dir",
        "dir.tar": "dir",
        "oci.tar": "oci-archive",
        "docker": "docker-archive",
        "docker25": "docker-archive",
    }
    assert kinds["layout"][1] == kinds["dir"][1] == kinds["dir.tar"][1] == kinds["oci.tar"][1]
    assert kinds["docker"][1] == kinds["docker25"][1]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
@pytest_twisted.ensureDeferred
async def test_standard_input(
    pack: Callable[[bytes], bytes], tmp_path: Path, threads: Threads
) -> None:
    """An archive from a pipe is read, packed or not."""
    content = pack(ARCHIVE)
    reading, writing = os.pipe()
    # In pieces, as a program would write them; larger ones than a pipe holds.
    writer = threads.begin(_write_and_close, writing, content)
    try:
        source = await open_text("-", tmp_path, threads, stdin=reading)
    finally:
        os.close(reading)
    await writer
    image, _ = await resolve(source)
    assert image.source_kind == "docker-archive"
    assert (tmp_path / "standard-input").stat().st_mode & 0o777 == 0o600


def _write_and_close(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        for start in range(0, len(content), 3000):
            pipe.write(content[start : start + 3000])


@pytest_twisted.ensureDeferred
async def test_standard_input_without_a_byte(tmp_path: Path, threads: Threads) -> None:
    """If the command in front of the pipe has failed, the error points to it."""
    reading, writing = os.pipe()
    os.close(writing)
    try:
        with pytest.raises(ManifestInvalid, match="empty"):
            await open_text("-", tmp_path, threads, stdin=reading)
    finally:
        os.close(reading)


@pytest_twisted.ensureDeferred
async def test_standard_input_that_never_ends(tmp_path: Path, threads: Threads) -> None:
    """A wait for a pipe can be canceled, and the bytes from a pipe are limited."""
    reading, writing = os.pipe()
    try:
        opening = Deferred.fromCoroutine(open_text("-", tmp_path, threads, stdin=reading))
        await pause(0.05, REACTOR)
        opening.cancel()
        with pytest.raises(CancelledError):
            await opening
        (tmp_path / "standard-input").unlink(missing_ok=True)
        os.write(writing, bytes(5000))
        limits = BuildLimits(layers_size=4000)
        with pytest.raises(ImageTooLarge, match="more than 4 kB"):
            await open_text("-", tmp_path, threads, stdin=reading, limits=limits)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"hello", "neither a tar archive nor"),
        (bytes(2048), "neither a tar archive nor"),
        (lzma.compress(ARCHIVE), "packed with xz"),
        (bz2.compress(ARCHIVE), "packed with bzip2"),
        (b"PK\3\4" + bytes(100), "a zip file"),
        (bytes(1080) + b"\x53\xef" + bytes(1000), "ext3 file system"),
        (b"#!/usr/bin/env run-singularity\n" + bytes(2000), "ext3 file system"),
        (tar_of({"etc/motd": b"hello"}), "docker export"),
        (ARCHIVE[:5000], "not a whole tar archive"),
        (gzip.compress(gzip.compress(ARCHIVE)), "packed twice"),
        (gzip.compress(ARCHIVE)[:-300], "file cannot be unpacked: it is damaged or incomplete"),
        (gzip.compress(b"hello"), "neither a tar archive nor"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_files_that_are_no_image(
    content: bytes, why: str, tmp_path: Path, threads: Threads
) -> None:
    """The error names the kind of a file that is not an image."""
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(GatewayError) as caught:
        await open_text(f"{tmp_path}/file", tmp_path, threads)
    assert why in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "oci:", "oci-archive:", "docker-archive:", "dir:", "sif:"])
@pytest_twisted.ensureDeferred
async def test_an_absent_file(prefix: str, tmp_path: Path, threads: Threads) -> None:
    """The error for a path without a file says so, whatever the prefix."""
    with pytest.raises(ImageNotFound, match="does not exist"):
        await resolve(await open_text(f"{prefix}{tmp_path}/absent", tmp_path, threads))


@pytest.mark.parametrize(
    ("prefix", "name", "why"),
    [
        ("sif:", "archive", "is a tar archive, and not what its prefix sif: says"),
        ("oci-archive:", "archive", "no index.json"),
        ("docker-archive:", "oci.tar", "is an OCI archive"),
        ("oci:", "directory", "has no index.json"),
        ("dir:", "directory", "has no manifest.json"),
        ("", "directory", "no image: it is neither"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_wrong_prefixes(
    prefix: str, name: str, why: str, tmp_path: Path, threads: Threads
) -> None:
    """The error explains a prefix that does not fit the file."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "archive").write_bytes(ARCHIVE)
    (tmp_path / "oci.tar").write_bytes(tar_of({"index.json": b"{}"}))
    with pytest.raises(ManifestInvalid) as caught:
        await resolve(await open_text(f"{prefix}{tmp_path}/{name}", tmp_path, threads))
    assert why in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_files_that_cannot_be_read(tmp_path: Path, threads: Threads) -> None:
    """A named pipe is refused before it blocks, and a directory is not read as a file."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceUnreadable, match="cannot be read"):
        await open_text(f"{tmp_path}/fifo", tmp_path, threads)
    with pytest.raises(SourceUnreadable, match="Is a directory"):
        await open_text(f"docker-archive:{tmp_path}", tmp_path, threads)
    with pytest.raises(SourceUnreadable, match="File name too long"):
        await open_text(f"{tmp_path}/{'x' * 300}", tmp_path, threads)


FORMS = {
    "archive": ARCHIVE,
    "docker25": tar_of(docker_25(LAYERS, CONFIG, ["a:1"])),
    "docker 1.9": tar_of(docker_1_9(LAYERS, ["a:1"])),
    "SIF": sif(sif_object(0x4003, b"{}"), sif_partition(b"hsqs" + bytes(200))),
}


@settings(max_examples=examples(200))
@given(form=st.sampled_from(sorted(FORMS)), data=st.data())
def test_damaged_bytes(form: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    """A damaged byte anywhere in a file causes an error of the program, and no other exception."""
    content = bytearray(FORMS[form])
    # The first bytes and the headers of members have the structure.
    position = st.one_of(st.integers(0, 700), st.integers(0, len(content) - 1))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(position)] = data.draw(st.integers(0, 255))
    directory = tmp_path_factory.mktemp("damaged")
    (directory / "file").write_bytes(content)
    with suppress(GatewayError):
        kind, extent = form_of_file(directory / "file")
        if kind == "sif":
            read_sif(extent)
        elif kind == "tar":
            tree = ArchiveTree(extent.path, Event())
            if form_of_archive(tree) == "docker-archive":
                DockerArchive(tree, extent.size, BuildLimits(), Event()).image("")
            else:
                LayoutFiles(tree).root(None)


@pytest.mark.parametrize("reserve", [scratch_files.DISK_RESERVE, -(1 << 40)])
@pytest_twisted.ensureDeferred
async def test_a_full_disk(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch, reserve: int
) -> None:
    """A disk that is too small for an unpacked archive is the cause, and is not filled."""
    monkeypatch.setattr(scratch_files, "DISK_RESERVE", reserve)
    (tmp_path / "packed").write_bytes(gzip.compress(tar_of({"x": bytes(3_000_000)})))
    with small_disk(tmp_path / "disk", "size=1m"):
        with pytest.raises(NoSpace, match="temporary files"):
            await open_text(f"{tmp_path}/packed", tmp_path / "disk", threads)
        written_size = (tmp_path / "disk" / "archive.tar").stat().st_size
    assert bool(written_size) is (reserve < 0)
