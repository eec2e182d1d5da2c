"""The sources of uploads: files, directories as tar archives, standard input."""

from __future__ import annotations

import io
import os
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftergw.cli import directory_tar
from shiftergw.cli.directory_tar import DirectoryTar, SourceChanged, files_below
from shiftergw.cli.exits import Misuse
from shiftergw.cli.upload_source import (
    UploadSource,
    check_registry_image,
    local_source_of,
    open_source,
)
from tests.matrices import examples


def open_by_name(text: str) -> UploadSource:
    """Open a source by its name."""
    source = local_source_of(text)
    assert source is not None
    return open_source(source)


def digest_of(source: UploadSource) -> str:
    """Compute the digest of a source."""
    while source.hashed_size < source.size:
        source.hash_piece()
    return source.digest


def layout(directory: Path) -> Path:
    """Write the files of an OCI layout, and some that do not belong to it."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (directory / "oci-layout").write_text("{}")
    (directory / "index.json").write_text('{"manifests": []}')
    (blobs / ("a" * 64)).write_bytes(b"x" * 1000)
    (blobs / ("b" * 64)).write_bytes(b"")
    (blobs / ("c" * 64)).write_bytes(b"y" * 512)
    (directory / "notes.txt").write_text("mine")
    (blobs / "partial.tmp").write_text("mine")
    return directory


def skopeo_directory(directory: Path) -> Path:
    """Write the files of a directory of skopeo's, and one that does not belong to it."""
    directory.mkdir()
    for name in ("manifest.json", "version", "a" * 64, "signature-1", "own.key"):
        (directory / name).write_text(name)
    return directory


@pytest.mark.parametrize(
    ("prefix", "kind"),
    [("", ""), ("docker-archive:", "docker-archive"), ("oci-archive:", "oci-archive"),
     ("sif:", "sif"), ("squashfs:", "squashfs")],
)  # fmt: skip
def test_files(tmp_path: Path, prefix: str, kind: str) -> None:
    """A file is sent as it is, under the gateway's name for its format."""
    content = os.urandom(100_000)
    (tmp_path / "image.bin").write_bytes(content)
    source = open_by_name(f"{prefix}{tmp_path}/image.bin")
    assert (source.kind, source.name, source.selector) == (kind, "image.bin", "")
    assert digest_of(source) == sha256(content).hexdigest()
    assert source.read(99_990, 100) == content[99_990:]
    source.close()


def test_a_selector(tmp_path: Path) -> None:
    """The selector of one of several images is passed on."""
    (tmp_path / "two.tar").write_bytes(b"x")
    assert open_by_name(f"docker-archive:{tmp_path}/two.tar:app:1").selector == "app:1"
    assert open_by_name(f"oci:{layout(tmp_path / 'layout')}:v1").selector == "v1"


@pytest.mark.parametrize("prefix", ["", "oci:", "dir:"])
def test_directories(tmp_path: Path, prefix: str) -> None:
    """A directory is sent as a tar archive of the files of an image; all others stay."""
    if prefix == "dir:":
        path, kind = skopeo_directory(tmp_path / "image"), "dir-archive"
    else:
        path, kind = layout(tmp_path / "image"), "oci-archive"
    source = open_by_name(f"{prefix}{path}")
    assert source.kind == kind
    with tarfile.open(fileobj=io.BytesIO(source.read(0, source.size))) as archive:
        names = archive.getnames()
        contents = {name: archive.extractfile(name) for name in names}
        assert all(
            file is not None and file.read() == (path / name).read_bytes()
            for name, file in contents.items()
        )
    assert names == sorted(names)
    assert not {"notes.txt", "blobs/sha256/partial.tmp", "own.key"} & set(names)
    assert len(names) == (4 if prefix == "dir:" else 5)


def test_an_archive_of_the_same_files_is_the_same(tmp_path: Path) -> None:
    """Times, modes and the order of the directory do not change the archive."""
    first = open_by_name(f"oci:{layout(tmp_path / 'one')}")
    path = layout(tmp_path / "two")
    for file in path.rglob("*"):
        os.utime(file, (1, 1))
        file.chmod(0o700)
    assert digest_of(first) == digest_of(open_by_name(f"oci:{path}"))


@settings(max_examples=examples(50), deadline=None)
@given(
    sizes=st.lists(st.integers(0, 1500), min_size=1, max_size=6),
    offset=st.integers(0, 9000),
    size=st.integers(1, 4000),
)
def test_any_part_of_an_archive(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], offset: int, size: int
) -> None:
    """Each part is that of the whole archive, which ends with two empty blocks."""
    directory = tmp_path_factory.mktemp("files")
    for number, length in enumerate(sizes):
        (directory / f"{number}{'n' * 40 * number}").write_bytes(bytes([number + 1]) * length)
    archive = DirectoryTar(directory, files_below(directory))
    whole = archive.read(0, archive.size)
    assert len(whole) == archive.size
    assert whole[-1024:] == bytes(1024)
    assert archive.read(offset, size) == whole[offset : offset + size]


def test_large_files_and_long_names(tmp_path: Path) -> None:
    """A file of 9 GiB has its true size in the archive; its bytes are never all in memory."""
    with (tmp_path / "large").open("wb") as file:
        file.truncate(9 << 30)
    archive = DirectoryTar(tmp_path, ["large"])
    with tarfile.open(fileobj=io.BytesIO(archive.read(0, 2048) + bytes(8192))) as tar:
        member = tar.next()
        assert member is not None
        assert (member.name, member.size) == ("large", 9 << 30)
    assert archive.size > 9 << 30
    assert archive.read((9 << 30) - 5, 10) == bytes(10)


@pytest.mark.parametrize("change", ["longer", "shorter", "rewritten", "replaced", "removed"])
@pytest.mark.parametrize("form", ["file", "directory"])
def test_a_change_is_noticed(tmp_path: Path, form: str, change: str) -> None:
    """A file that changes after the first look is an error: its bytes are not mixed."""
    path = layout(tmp_path / "image")
    file = path / "blobs" / "sha256" / ("a" * 64)
    source = open_by_name(f"oci:{path}" if form == "directory" else str(file))
    os.utime(file, (1, 1))
    source = open_by_name(f"oci:{path}" if form == "directory" else str(file))
    if change == "removed":
        file.unlink()
    elif change == "replaced":
        (path / "new").write_bytes(b"z" * 1000)
        (path / "new").rename(file)
    else:
        length = {"longer": 1001, "shorter": 10, "rewritten": 1000}[change]
        file.write_bytes(b"z" * length)
    if form == "file" and change in {"removed", "replaced"}:
        assert source.read(0, source.size) == b"x" * 1000  # the open file is still the same
        return
    with pytest.raises(SourceChanged, match="has changed while it was read"):
        source.read(0, source.size)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{0}/none.tar", "none.tar cannot be read: No such file"),
        ("docker-archive:{0}/none", "none cannot be read: No such file"),
        ("oci:{0}/none", "none is not a directory"),
        ("dir:{0}/file", "file is not a directory"),
        ("oci:{0}/empty", "empty has no file index.json"),
        ("dir:{0}/empty", "empty has no file manifest.json"),
        ("{0}/empty", "neither an OCI layout .* nor a directory of skopeo's"),
        ("sif:{0}/empty", "empty is a directory, not a file"),
        ("{0}/pipe", "pipe is not a regular file. Standard input is written `-`"),
        ("{0}/nothing", "nothing is empty"),
        ("{0}/links", "cannot be read"),
    ],
)
def test_things_that_cannot_be_uploaded(tmp_path: Path, text: str, words: str) -> None:
    """The error names the file and its fault; a named pipe does not block the command."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "nothing").write_text("")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "links").symlink_to("links")
    with pytest.raises(Misuse, match=words):
        open_by_name(text.format(tmp_path))


def test_files_in_an_image_that_are_no_files(tmp_path: Path) -> None:
    """A pipe in the place of a blob is refused, and so are too many files."""
    path = layout(tmp_path / "image")
    os.mkfifo(path / "blobs" / "sha256" / ("d" * 64))
    with pytest.raises(Misuse, match="is not a regular file"):
        open_by_name(f"oci:{path}")


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is no image is not searched to its end."""
    monkeypatch.setattr(directory_tar, "FILES_LIMIT", 3)
    with pytest.raises(Misuse, match="more than 3 files: is it an image"):
        open_by_name(f"oci:{layout(tmp_path / 'image')}")


def test_names_of_registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway interprets names of images in registries; a name of a file is a file."""
    monkeypatch.chdir(tmp_path)
    for text in ("ubuntu:24.04", "image.sif", "docker://ubuntu", "oci://quay.io/a"):
        check_registry_image(text)
    (tmp_path / "image.sif").write_text("x")
    for text in ("image.sif", "./none.tar", "oci:layout", "docker-archive:a.tar", "-", "/a/b.sqsh"):
        with pytest.raises(Misuse, match="To upload it, give it a name"):
            check_registry_image(text)
    for text in ("ubuntu:24.04", "docker://ubuntu", "x" * 5000):
        assert local_source_of(text) is None
    (tmp_path / "image.img").write_text("x")
    with pytest.raises(Misuse, match="for an image of that name"):
        local_source_of("image.img")
