"""The files of a system over SCP: partial files, obstacles, and faulty programs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import pytest
import pytest_twisted

from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.source_file import SourceFile
from shiftergw.errors import DeliveryFailed
from shiftergw.model.records import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.delivery.far import (
    IDLE_SECONDS,
    UNUSED_ACCOUNT,
    Opens,
    connection,
    far_directory,
    program_is,
    without_ssh,
)
from tests.installed_reactor import reactor
from tests.parts import need

PART = f"{IMAGE}.partial.{SHA256[:16]}"

begin = partial(ScpFiles.begin, stretch=4 << 20)


@pytest.fixture
def opens(threads: Threads, root: Path, directories: list[RemoteDirectory]) -> Opens:
    """Give a function that opens image directories; they are closed after the test."""

    def open_directory(env: Mapping[str, str]) -> RemoteDirectory:
        path = PurePosixPath(root)
        directories.append(far_directory(UNUSED_ACCOUNT, path, threads, env, open_files=begin))
        return directories[-1]

    return open_directory


@pytest.mark.parametrize("part_size", [0, 1, 5 << 20, (5 << 20) + 1, len(CONTENT)])
@pytest_twisted.ensureDeferred
async def test_part(opens: Opens, root: Path, tmp_path: Path, source: Path, part_size: int) -> None:
    """A part of any length is completed and gets mode 0600."""
    part = root / PART
    part.write_bytes(CONTENT[:part_size])
    part.chmod(0o644)
    directory = opens(without_ssh(tmp_path / "bin"))
    reports: list[Progress] = []
    await directory.install(source, IMAGE, SHA256, reports.append)
    assert reports[0].done >= part_size
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == CONTENT
    assert (root / IMAGE).stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("damage", ["first", "last", "longer", "link"])
@pytest_twisted.ensureDeferred
async def test_part_with_other_content(
    opens: Opens, root: Path, tmp_path: Path, source: Path, damage: str
) -> None:
    """A temporary that is not the beginning of the file is replaced."""
    part = root / PART
    part_content = bytearray(CONTENT[: 5 << 20])
    if damage in {"first", "last"}:
        part_content[0 if damage == "first" else -1] ^= 1
    elif damage == "longer":
        part_content = bytearray(len(CONTENT) + 1)
    part.write_bytes(part_content)
    if damage == "link":
        part.rename(tmp_path / "precious")
        part.symlink_to(tmp_path / "precious")
    directory = opens(without_ssh(tmp_path / "bin"))
    reports: list[Progress] = []
    await directory.install(source, IMAGE, SHA256, reports.append)
    assert reports[0].done < len(part_content)
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == CONTENT
    if damage == "link":
        assert (tmp_path / "precious").read_bytes() == part_content


@pytest.mark.parametrize("place", ["target", "temporary"])
@pytest_twisted.ensureDeferred
async def test_directory_in_the_way(
    opens: Opens, root: Path, tmp_path: Path, source: Path, place: str
) -> None:
    """A directory with the name of a file is an error, and nothing is moved into it."""
    obstacle = root / (IMAGE if place == "target" else PART)
    obstacle.mkdir()
    directory = opens(without_ssh(tmp_path / "bin"))
    with pytest.raises(DeliveryFailed):
        await directory.install(source, IMAGE, SHA256, ignore)
    if place == "target":
        with pytest.raises(DeliveryFailed):
            await directory.remove(IMAGE)
    assert names(obstacle) == []
    assert names(root) == [obstacle.name]


@pytest_twisted.ensureDeferred
async def test_link_to_a_directory_in_the_way(
    opens: Opens, root: Path, tmp_path: Path, source: Path
) -> None:
    """A symlink to a directory is itself replaced."""
    other_directory = tmp_path / "elsewhere"
    other_directory.mkdir()
    (root / IMAGE).symlink_to(other_directory)
    await opens(without_ssh(tmp_path / "bin")).install(source, IMAGE, SHA256, ignore)
    assert (root / IMAGE).read_bytes() == CONTENT
    assert names(other_directory) == []


SWALLOWS = "printf '\\0'; read -r head; printf '\\0'; head -c 10000001 > /dev/null; printf '\\0'"
"""A receiver that confirms a file and writes nothing."""


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("echo 'Access denied.'", "violates the SCP protocol"),
        ("printf '\\0\\0'; cat", "violates the SCP protocol"),
        ("printf '\\0'; cat", "violates the SCP protocol"),
        ("yes", "violates the SCP protocol"),
        ("printf '\\1'; yes | tr -d '\\n'", "violates the SCP protocol"),
        ("printf '\\0'; head -n 1; printf '\\0'; tr '\\0-\\377' '\\0'", "violates the SCP"),
        ("exit 0", "violates the SCP protocol"),
        ("exit 1", "cannot be used"),
        ("exit 103", "cannot be used"),
        ("kill $$", "cannot be used"),
        ("printf '\\1scp: no\\n'; cat > /dev/null", "cannot be used"),
        ("printf '\\0'; read -r head; printf '\\2scp: no\\n'; cat > /dev/null", "cannot be used"),
        ("printf '\\0'; read -r head; printf '\\0'; exit 0", "violates the SCP protocol"),
        (f"{SWALLOWS}; exit 3", "cannot be used"),
        (f"{SWALLOWS}; exit 0", "is not what was sent"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_faulty_receivers(
    opens: Opens, root: Path, tmp_path: Path, source: Path, script: str, what: str
) -> None:
    """A receiver that violates the protocol ends the delivery with an error."""
    directory = opens(program_is(tmp_path, "scp", script))
    with pytest.raises(DeliveryFailed, match=what):
        await directory.install(source, IMAGE, SHA256, ignore)
    (tmp_path / "far" / "scp").unlink()
    await directory.install(source, IMAGE, SHA256, ignore)
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == CONTENT


@pytest_twisted.ensureDeferred
async def test_file_is_private_from_its_first_byte(
    opens: Opens, root: Path, tmp_path: Path, source: Path
) -> None:
    """Other users can never read a file, whatever the umask of the account."""
    modes = tmp_path / "modes"
    script = f'stat -c %a:%s -- "$3" >> {modes}; exec {need("scp")} "$@"'
    directory = opens(program_is(tmp_path, "scp", script, before="umask 0"))
    await directory.install(source, IMAGE, SHA256, ignore)
    (root / PART).write_bytes(CONTENT[:1])
    await directory.install(source, IMAGE, SHA256, ignore)
    # Once as a whole file, and then in three stretches.
    assert modes.read_text() == 4 * "600:0\n"


@pytest_twisted.ensureDeferred
async def test_system_without_scp(opens: Opens, root: Path, tmp_path: Path) -> None:
    """The detail of the error names the missing programs."""
    programs = tmp_path / "far"
    programs.mkdir()
    for program in ("sh", "stat", "find", "df", "head", "rm", "mv", "cat", "chmod"):
        (programs / program).symlink_to(need(program))
    env = without_ssh(tmp_path / "bin", before=f"PATH={programs}")
    with pytest.raises(DeliveryFailed, match="lacks programs") as caught:
        await opens(env).write(b"x", META)
    assert caught.value.detail.split() == ["scp", "dd"]


@pytest_twisted.ensureDeferred
async def test_unknown_free_space(opens: Opens, root: Path, tmp_path: Path) -> None:
    """Unknown free space counts as enough."""
    directory = opens(program_is(tmp_path, "df", "echo 'Filesystem'; echo 'lustre - - - - /'"))
    assert await directory.free_space() > 1 << 60


@pytest_twisted.ensureDeferred
async def test_listing_in_a_changing_directory(opens: Opens, root: Path, tmp_path: Path) -> None:
    """A failed listing is retried a few times before it is an error."""
    first = f"[ -e {tmp_path}/failed ] || {{ touch {tmp_path}/failed; exit 1; }}"
    directory = opens(program_is(tmp_path, "find", f'{first}; exec {need("find")} "$@"'))
    await directory.write(b"x", META)
    assert [file.name for file in await directory.list()] == [META]
    (tmp_path / "far" / "find").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(DeliveryFailed):
        await directory.list()


@asynccontextmanager
async def files(tmp_path: Path) -> AsyncIterator[ScpFiles]:
    """Give the block a session with the files of this machine."""
    link = connection(UNUSED_ACCOUNT, without_ssh(tmp_path / "bin"))
    try:
        yield await ScpFiles.begin(link, reactor, IDLE_SECONDS)
    finally:
        await link.close()


@pytest_twisted.ensureDeferred
async def test_upload_into_an_existing_file(tmp_path: Path, threads: Threads) -> None:
    """An existing file, which has its layout, is written and not replaced."""
    path, source = tmp_path / "file", tmp_path / "source"
    source.write_bytes(CONTENT)
    path.touch(0o644)
    inode = path.stat().st_ino
    reports: list[int] = []
    async with files(tmp_path) as session:
        with source.open("rb") as file:
            source_file = SourceFile(file.fileno(), len(CONTENT), threads)
            await session.upload(bytes(path), source_file, 0, reports.append)
            with pytest.raises(SftpRefused):
                await session.upload(bytes(tmp_path / "none"), source_file, 0, ignore_size)
    assert path.read_bytes() == CONTENT
    assert (path.stat().st_ino, path.stat().st_mode & 0o7777) == (inode, 0o600)
    assert reports[-1] == len(CONTENT)


def ignore_size(size: int) -> None:
    """Ignore a progress report."""


@pytest_twisted.ensureDeferred
async def test_pieces(tmp_path: Path) -> None:
    """Pieces of a file have the requested bytes, fewer only at its end."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    size = len(CONTENT)
    places = [
        (0, 1), (0, 4096), (1, 4096), (4095, 2), (4096, 4096), (5_000_001, 32768),
        (size - 10, 10), (size - 10, 4096), (size - 1, 9000), (size, 5), (size + 9999, 5),
    ]  # fmt: skip
    async with files(tmp_path) as session:
        pieces = await session.pieces(bytes(path), places)
        assert pieces == [CONTENT[offset : offset + length] for offset, length in places]
        with pytest.raises(SftpRefused) as caught:
            await session.pieces(bytes(tmp_path / "none"), places)
    assert caught.value.status == packets.NO_SUCH_FILE


@pytest_twisted.ensureDeferred
async def test_reads_through(tmp_path: Path) -> None:
    """The beginning of a file is read in order; a file that is too short is an error."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    size = len(CONTENT)
    async with files(tmp_path) as session:
        for length in (0, 1, size - 1, size):
            content = bytearray()
            await session.read_through(bytes(path), length, content.extend)
            assert content == CONTENT[:length]
        with pytest.raises(SftpRefused):
            await session.read_through(bytes(path), size + 1, content.extend)
        assert session.usable


@pytest_twisted.ensureDeferred
async def test_long_directory(tmp_path: Path) -> None:
    """A directory with many entries is listed completely."""
    place = tmp_path / "many"
    place.mkdir()
    for n in range(3000):
        (place / f"{n}.{'x' * 100}").touch()
    async with files(tmp_path) as session:
        entries = await session.entries(bytes(place), lambda name: name.startswith(b"1"))
        with pytest.raises(SftpRefused) as caught:
            await session.entries(bytes(tmp_path / "none"), bool)
    assert {name for name, _ in entries} == {
        path.name.encode() for path in place.iterdir() if path.name.startswith("1")
    }
    assert caught.value.status == packets.NO_SUCH_FILE
