"""The image directory on another machine without SFTP: the contract of them all, over SCP."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.delivery.files import RemoteFiles
from shiftergw.delivery.hosts import Hosts
from shiftergw.delivery.remote import RemoteDirectory, RemoteOptions
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.connection import SshConnection, connect
from shiftergw.ssh.openssh import OpensshAccount
from tests.delivery.contract import (
    CONTENT,
    IMAGE,
    META,
    SHA256,
    ImageDirectoryContract,
    ignore,
    names,
)
from tests.delivery.far import (
    IDLE_SECONDS,
    NOBODY,
    account_on,
    connection,
    far_directory,
    reactor,
    without_ssh,
)
from tests.delivery.native import account
from tests.parts import need
from tests.sshd import Sshd


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Run a server that has no SFTP."""
    with Sshd("Subsystem sftp /bin/false") as running:
        yield running


def closing(directory: RemoteDirectory) -> Iterator[RemoteDirectory]:
    """Give the adapter, and close it afterwards."""
    yield directory
    pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


def far(root: Path, threads: Threads, env: Mapping[str, str]) -> RemoteDirectory:
    """Return the adapter for a directory that a stand-in for `ssh` finds."""
    path = PurePosixPath(root)
    return far_directory(NOBODY, path, threads, env, open_files=ScpFiles.begin)


class TestProgramsAlone(ImageDirectoryContract):
    """The contract, by `scp` and the other programs of this machine."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, tmp_path: Path) -> Iterator[RemoteDirectory]:
        """Give the adapter."""
        yield from closing(far(root, threads, without_ssh(tmp_path / "bin")))


class TestBusybox(ImageDirectoryContract):
    """The contract, on a system whose shell and programs are those of busybox."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, tmp_path: Path) -> Iterator[RemoteDirectory]:
        """Give the adapter."""
        there = tmp_path / "busybox"
        there.mkdir()
        subprocess.run([need("busybox"), "--install", "-s", there], check=True)
        (there / "scp").symlink_to(need("scp"))
        env = without_ssh(tmp_path / "bin", before=f"PATH={there}")
        yield from closing(far(root, threads, env))


@pytest.fixture(scope="module")
def shared(sshd: Sshd) -> Iterator[OpensshAccount]:
    """Give an account whose logins are shared while something runs, and a little longer."""
    options = ("ControlMaster=auto", "ControlPersist=5", f"ControlPath={sshd.root}/shared")
    words = [word for option in options for word in ("-o", option)]
    yield account_on(sshd, options=words)
    subprocess.run([need("ssh"), *words, "-O", "exit", "127.0.0.1"], check=False)


class TestSshd(ImageDirectoryContract):
    """The contract, over OpenSSH on both sides, with one login for all that is run."""

    @pytest.fixture
    def directory(
        self, root: Path, threads: Threads, shared: OpensshAccount
    ) -> Iterator[RemoteDirectory]:
        """Give the adapter."""
        path = PurePosixPath(root)
        yield from closing(far_directory(shared, path, threads, open_files=ScpFiles.begin))


class TestNative(ImageDirectoryContract):
    """The contract, by Conch to OpenSSH's server."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, sshd: Sshd) -> Iterator[RemoteDirectory]:
        """Give the adapter."""

        async def begin() -> SshConnection:
            return await connect(account(sshd), reactor, threads, idle_seconds=IDLE_SECONDS)

        yield from closing(
            RemoteDirectory(
                Hosts({"127.0.0.1": begin}, reactor),
                PurePosixPath(root),
                threads,
                reactor,
                RemoteOptions(idle_seconds=IDLE_SECONDS, open_files=ScpFiles.begin),
            )
        )


@pytest.mark.parametrize("noise", ["Welcome!", "\\0\\0\\0", "\\1scp: no\\n", "x" * 5000])
@pytest_twisted.ensureDeferred
async def test_files_that_print(root: Path, threads: Threads, tmp_path: Path, noise: str) -> None:
    """What an account's start-up files print disturbs nothing."""
    env = without_ssh(tmp_path / "bin", before=f"printf '{noise}'; echo also >&2")
    directory = far(root, threads, env)
    source = tmp_path / "converted"
    source.write_bytes(CONTENT)
    try:
        await directory.install(source, IMAGE, SHA256, ignore)
        assert await directory.digest(IMAGE) == SHA256
        assert [one.size for one in await directory.list()] == [len(CONTENT)]
    finally:
        await directory.close()


ODD = [
    "a b",
    "it's",
    'say "so"',
    "$(touch hacked)",
    "`touch hacked`",
    "a;touch hacked",
    "two\nlines",
    "-rf",
    "back\\slash",
    "*",
    "!x",
    "ü\udcff",
]


def hacked(tmp_path: Path) -> list[Path]:
    """Return what a shell made that took a part of a name for a command."""
    return [*tmp_path.rglob("hacked"), *Path.home().glob("hacked"), *Path().glob("hacked")]


@pytest.mark.parametrize("transport", ["ours", "openssh"])
@pytest_twisted.ensureDeferred
async def test_paths_are_words(
    tmp_path: Path, threads: Threads, sshd: Sshd, transport: str
) -> None:
    """Whatever a directory is called, it stays one word through every shell."""
    source = tmp_path / "converted"
    source.write_bytes(CONTENT)
    root = tmp_path.joinpath(*ODD)
    root.mkdir(parents=True)

    async def begin() -> SshConnection:
        return await connect(account(sshd), reactor, threads, idle_seconds=IDLE_SECONDS)

    path = PurePosixPath(root)
    directory = (
        RemoteDirectory(
            Hosts({"127.0.0.1": begin}, reactor),
            path,
            threads,
            reactor,
            RemoteOptions(open_files=ScpFiles.begin),
        )
        if transport == "ours"
        else far_directory(account_on(sshd), path, threads, open_files=ScpFiles.begin)
    )
    try:
        assert await directory.free_space() > 0
        await directory.write(b"x", META)
        await directory.install(source, IMAGE, SHA256, ignore)
        assert await directory.digest(IMAGE) == SHA256
        assert [one.name for one in await directory.list()] == [META, IMAGE]
        await directory.remove(META)
        assert names(root) == [IMAGE]
    finally:
        await directory.close()
    assert hacked(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_files_of_foreign_names(root: Path, threads: Threads, tmp_path: Path) -> None:
    """No name that lies in the directory is taken for another one."""
    (root / "x\n81a4 5 0 .").mkdir()
    forged = root / "x\n81a4 5 0 ." / IMAGE
    forged.write_bytes(b"x")
    (root / f"81a4 5 0 {IMAGE}").write_bytes(b"x")
    (root / "\udcff").write_bytes(b"x")
    directory = far(root, threads, without_ssh(tmp_path / "bin"))
    try:
        assert await directory.list() == []
        await directory.write(b"123", META)
        assert [one.name for one in await directory.list()] == [META]
    finally:
        await directory.close()


def test_it_keeps_the_seam() -> None:
    """The type checker sees that these are `Files`."""
    opens: type[ScpFiles] = ScpFiles

    def seam(files: ScpFiles) -> RemoteFiles:
        return files

    assert opens is ScpFiles
    assert seam is not None
    assert connection(NOBODY).usable
