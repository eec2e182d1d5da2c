"""The files of a system by SCP: parts, what is in the way, and wrong programs over there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.source_file import SourceFile
from shiftergw.errors import DeliveryFailed
from shiftergw.model import Progress
from shiftergw.plumbing.threads import Threads
from shiftergw.sftp import packets
from shiftergw.sftp.packets import SftpRefused
from tests.delivery.contract import CONTENT, IMAGE, META, SHA256, ignore, names
from tests.delivery.far import IDLE_SECONDS, NOBODY, connection, far_directory, reactor, without_ssh
from tests.parts import need

PART = f"{IMAGE}.partial.{SHA256[:16]}"

begin = partial(ScpFiles.begin, stretch=4 << 20)


Opens = Callable[[Mapping[str, str]], RemoteDirectory]


@pytest.fixture
def opens(threads: Threads, root: Path) -> Iterator[Opens]:
    """Give what makes adapters that are closed afterwards."""
    made: list[RemoteDirectory] = []

    def far(env: Mapping[str, str]) -> RemoteDirectory:
        path = PurePosixPath(root)
        made.append(far_directory(NOBODY, path, threads, env, open_files=begin))
        return made[-1]

    yield far
    for directory in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


@pytest.mark.parametrize("there", [0, 1, 5 << 20, (5 << 20) + 1, len(CONTENT)])
@pytest_twisted.ensureDeferred
async def test_part(opens: Opens, root: Path, tmp_path: Path, source: Path, there: int) -> None:
    """A part of any length is completed, and nobody else can read it any more."""
    part = root / PART
    part.write_bytes(CONTENT[:there])
    part.chmod(0o644)
    directory = opens(without_ssh(tmp_path / "bin"))
    heard: list[Progress] = []
    await directory.install(source, IMAGE, SHA256, heard.append)
    assert heard[0].done >= there
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == CONTENT
    assert (root / IMAGE).stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("damage", ["first", "last", "longer", "link"])
@pytest_twisted.ensureDeferred
async def test_part_that_is_no_part(
    opens: Opens, root: Path, tmp_path: Path, source: Path, damage: str
) -> None:
    """What lies under a temporary's name and is not the file's beginning is thrown away."""
    part = root / PART
    there = bytearray(CONTENT[: 5 << 20])
    if damage in {"first", "last"}:
        there[0 if damage == "first" else -1] ^= 1
    elif damage == "longer":
        there = bytearray(len(CONTENT) + 1)
    part.write_bytes(there)
    if damage == "link":
        part.rename(tmp_path / "precious")
        part.symlink_to(tmp_path / "precious")
    directory = opens(without_ssh(tmp_path / "bin"))
    heard: list[Progress] = []
    await directory.install(source, IMAGE, SHA256, heard.append)
    assert heard[0].done < len(there)
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == CONTENT
    if damage == "link":
        assert (tmp_path / "precious").read_bytes() == there


@pytest.mark.parametrize("place", ["target", "temporary"])
@pytest_twisted.ensureDeferred
async def test_directory_in_the_way(
    opens: Opens, root: Path, tmp_path: Path, source: Path, place: str
) -> None:
    """A directory of a file's name is an error, and nothing is put into it."""
    there = root / (IMAGE if place == "target" else PART)
    there.mkdir()
    directory = opens(without_ssh(tmp_path / "bin"))
    with pytest.raises(DeliveryFailed):
        await directory.install(source, IMAGE, SHA256, ignore)
    if place == "target":
        with pytest.raises(DeliveryFailed):
            await directory.remove(IMAGE)
    assert names(there) == []
    assert names(root) == [there.name]


@pytest_twisted.ensureDeferred
async def test_link_to_a_directory_in_the_way(
    opens: Opens, root: Path, tmp_path: Path, source: Path
) -> None:
    """A symlink is replaced by itself, also if it leads to a directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / IMAGE).symlink_to(elsewhere)
    await opens(without_ssh(tmp_path / "bin")).install(source, IMAGE, SHA256, ignore)
    assert (root / IMAGE).read_bytes() == CONTENT
    assert names(elsewhere) == []


def program_is(tmp_path: Path, name: str, script: str, before: str = "true") -> Mapping[str, str]:
    """Return the environment of a stand-in whose program of this name is a script.

    The account's start-up files are the shell's `before`.
    """
    there = tmp_path / "far"
    there.mkdir()
    (there / name).write_text(f"#!/bin/sh\n{script}\n")
    (there / name).chmod(0o755)
    return without_ssh(tmp_path / "bin", before=f"PATH={there}:$PATH; {before}")


SWALLOWS = "printf '\\0'; read -r head; printf '\\0'; head -c 10000001 > /dev/null; printf '\\0'"
"""A sink that writes nothing."""


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("echo 'Access denied.'", "does not keep the protocol"),
        ("printf '\\0\\0'; cat", "does not keep the protocol"),
        ("printf '\\0'; cat", "does not keep the protocol"),
        ("yes", "does not keep the protocol"),
        ("printf '\\1'; yes | tr -d '\\n'", "does not keep the protocol"),
        ("printf '\\0'; head -n 1; printf '\\0'; tr '\\0-\\377' '\\0'", "does not keep"),
        ("exit 0", "does not keep the protocol"),
        ("exit 1", "cannot be used"),
        ("exit 103", "cannot be used"),
        ("kill $$", "cannot be used"),
        ("printf '\\1scp: no\\n'; cat > /dev/null", "cannot be used"),
        ("printf '\\0'; read -r head; printf '\\2scp: no\\n'; cat > /dev/null", "cannot be used"),
        ("printf '\\0'; read -r head; printf '\\0'; exit 0", "does not keep the protocol"),
        (f"{SWALLOWS}; exit 3", "cannot be used"),
        (f"{SWALLOWS}; exit 0", "is not what was sent"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_hostile_sinks(
    opens: Opens, root: Path, tmp_path: Path, source: Path, script: str, what: str
) -> None:
    """A program that is no SCP sink ends the delivery with an error; the next one goes through."""
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
    """Nobody else could read a file at any time, whatever the account's umask is."""
    modes = tmp_path / "modes"
    script = f'stat -c %a:%s -- "$3" >> {modes}; exec {need("scp")} "$@"'
    directory = opens(program_is(tmp_path, "scp", script, before="umask 0"))
    await directory.install(source, IMAGE, SHA256, ignore)
    (root / PART).write_bytes(CONTENT[:1])
    await directory.install(source, IMAGE, SHA256, ignore)
    # Whole, and in three stretches.
    assert modes.read_text() == 4 * "600:0\n"


@pytest_twisted.ensureDeferred
async def test_system_without_scp(opens: Opens, root: Path, tmp_path: Path) -> None:
    """Which programs a system lacks is told to admins."""
    there = tmp_path / "far"
    there.mkdir()
    for program in ("sh", "stat", "find", "df", "head", "rm", "mv", "cat", "chmod"):
        (there / program).symlink_to(need(program))
    env = without_ssh(tmp_path / "bin", before=f"PATH={there}")
    with pytest.raises(DeliveryFailed, match="lacks programs") as caught:
        await opens(env).write(b"x", META)
    assert caught.value.detail.split() == ["scp", "dd"]


@pytest_twisted.ensureDeferred
async def test_disk_of_which_nothing_is_known(opens: Opens, root: Path, tmp_path: Path) -> None:
    """Where nobody can tell the space there is enough."""
    directory = opens(program_is(tmp_path, "df", "echo 'Filesystem'; echo 'lustre - - - - /'"))
    assert await directory.free_space() > 1 << 60


@pytest_twisted.ensureDeferred
async def test_listing_in_a_changing_directory(opens: Opens, root: Path, tmp_path: Path) -> None:
    """A listing that fails is tried again, and an error if it goes on failing."""
    first = f"[ -e {tmp_path}/failed ] || {{ touch {tmp_path}/failed; exit 1; }}"
    directory = opens(program_is(tmp_path, "find", f'{first}; exec {need("find")} "$@"'))
    await directory.write(b"x", META)
    assert [one.name for one in await directory.list()] == [META]
    (tmp_path / "far" / "find").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(DeliveryFailed):
        await directory.list()


@asynccontextmanager
async def files(tmp_path: Path) -> AsyncIterator[ScpFiles]:
    """Give a session with the files of this machine."""
    over = connection(NOBODY, without_ssh(tmp_path / "bin"))
    try:
        yield await ScpFiles.begin(over, reactor, IDLE_SECONDS)
    finally:
        await over.close()


@pytest_twisted.ensureDeferred
async def test_file_that_is_there(tmp_path: Path, threads: Threads) -> None:
    """A file that is there, for its layout on the disks, is written and stays the same file."""
    path, source = tmp_path / "file", tmp_path / "source"
    source.write_bytes(CONTENT)
    path.touch(0o644)
    inode = path.stat().st_ino
    heard: list[int] = []
    async with files(tmp_path) as session:
        with source.open("rb") as file:
            there = SourceFile(file.fileno(), len(CONTENT), threads)
            await session.upload(bytes(path), there, 0, heard.append)
            with pytest.raises(SftpRefused):
                await session.upload(bytes(tmp_path / "none"), there, 0, ignored)
    assert path.read_bytes() == CONTENT
    assert (path.stat().st_ino, path.stat().st_mode & 0o7777) == (inode, 0o600)
    assert heard[-1] == len(CONTENT)


def ignored(there: int) -> None:
    """Hear a report."""


@pytest_twisted.ensureDeferred
async def test_pieces(tmp_path: Path) -> None:
    """Pieces of a file are those that were asked for, shorter only at its end."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    size = len(CONTENT)
    places = [
        (0, 1), (0, 4096), (1, 4096), (4095, 2), (4096, 4096), (5_000_001, 32768),
        (size - 10, 10), (size - 10, 4096), (size - 1, 9000), (size, 5), (size + 9999, 5),
    ]  # fmt: skip
    async with files(tmp_path) as session:
        found = await session.pieces(bytes(path), places)
        assert found == [CONTENT[offset : offset + length] for offset, length in places]
        with pytest.raises(SftpRefused) as caught:
            await session.pieces(bytes(tmp_path / "none"), places)
    assert caught.value.status == packets.NO_SUCH_FILE


@pytest_twisted.ensureDeferred
async def test_reads_through(tmp_path: Path) -> None:
    """The beginning of a file is read in order; one that is too short is an error."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    size = len(CONTENT)
    async with files(tmp_path) as session:
        for length in (0, 1, size - 1, size):
            found = bytearray()
            await session.read_through(bytes(path), length, found.extend)
            assert found == CONTENT[:length]
        with pytest.raises(SftpRefused):
            await session.read_through(bytes(path), size + 1, found.extend)
        assert session.usable


@pytest_twisted.ensureDeferred
async def test_long_directory(tmp_path: Path) -> None:
    """A directory of many entries is listed whole, as far as its names are wanted."""
    place = tmp_path / "many"
    place.mkdir()
    for n in range(3000):
        (place / f"{n}.{'x' * 100}").touch()
    async with files(tmp_path) as session:
        found = await session.entries(bytes(place), lambda name: name.startswith(b"1"))
        with pytest.raises(SftpRefused) as caught:
            await session.entries(bytes(tmp_path / "none"), bool)
    assert {name for name, _ in found} == {
        path.name.encode() for path in place.iterdir() if path.name.startswith("1")
    }
    assert caught.value.status == packets.NO_SUCH_FILE
