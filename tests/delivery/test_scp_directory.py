"""The contract of image directories, over SCP."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest
import pytest_twisted

from shiftergw.delivery.files import RemoteFiles
from shiftergw.delivery.hosts import Hosts
from shiftergw.delivery.remote import RemoteDirectory, RemoteOptions
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.connection import SshConnection, connect
from shiftergw.ssh.openssh import OpensshAccount
from tests.delivery.conch_client import account
from tests.delivery.contract import (
    CONTENT,
    IMAGE,
    META,
    SHA256,
    ImageDirectoryContract,
    ignore,
    names,
)
from tests.delivery.delta_contract import SharedRangesContract
from tests.delivery.far import (
    IDLE_SECONDS,
    UNUSED_ACCOUNT,
    account_on,
    closing,
    connection,
    far_directory,
    without_ssh,
)
from tests.installed_reactor import reactor
from tests.parts import need
from tests.sshd import Sshd


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """Run a server that has no SFTP."""
    with Sshd("Subsystem sftp /bin/false") as running:
        yield running


def scp_directory(root: Path, threads: Threads, env: Mapping[str, str]) -> RemoteDirectory:
    """Return an image directory that is reached with a stand-in for `ssh`."""
    path = PurePosixPath(root)
    return far_directory(UNUSED_ACCOUNT, path, threads, env, open_files=ScpFiles.begin)


class TestProgramsAlone(ImageDirectoryContract, SharedRangesContract):
    """The contract, with `scp` and the other programs of this machine."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, tmp_path: Path) -> Iterator[RemoteDirectory]:
        """Give an image directory."""
        yield from closing(scp_directory(root, threads, without_ssh(tmp_path / "bin")))


class TestBusybox(ImageDirectoryContract, SharedRangesContract):
    """The contract, on a system whose shell and programs are those of busybox."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, tmp_path: Path) -> Iterator[RemoteDirectory]:
        """Give an image directory."""
        programs = tmp_path / "busybox"
        programs.mkdir()
        subprocess.run([need("busybox"), "--install", "-s", programs], check=True)
        (programs / "scp").symlink_to(need("scp"))
        env = without_ssh(tmp_path / "bin", before=f"PATH={programs}")
        yield from closing(scp_directory(root, threads, env))


@pytest.fixture(scope="module")
def shared_account(sshd: Sshd) -> Iterator[OpensshAccount]:
    """Give an account whose logins are shared, also for a while after a program has ended."""
    options = ("ControlMaster=auto", "ControlPersist=5", f"ControlPath={sshd.root}/shared")
    words = [word for option in options for word in ("-o", option)]
    yield account_on(sshd, options=words)
    subprocess.run([need("ssh"), *words, "-O", "exit", "127.0.0.1"], check=False)


class TestSshd(ImageDirectoryContract, SharedRangesContract):
    """The contract, with OpenSSH as client and server, and one login for all programs."""

    @pytest.fixture
    def directory(
        self, root: Path, threads: Threads, shared_account: OpensshAccount
    ) -> Iterator[RemoteDirectory]:
        """Give an image directory."""
        path = PurePosixPath(root)
        yield from closing(far_directory(shared_account, path, threads, open_files=ScpFiles.begin))


class TestConchClient(ImageDirectoryContract, SharedRangesContract):
    """The contract, with Conch and OpenSSH's server."""

    @pytest.fixture
    def directory(self, root: Path, threads: Threads, sshd: Sshd) -> Iterator[RemoteDirectory]:
        """Give an image directory."""

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
async def test_start_up_files_that_print(
    root: Path, threads: Threads, tmp_path: Path, noise: str
) -> None:
    """The output of the account's start-up files is ignored."""
    env = without_ssh(tmp_path / "bin", before=f"printf '{noise}'; echo also >&2")
    directory = scp_directory(root, threads, env)
    source = tmp_path / "converted"
    source.write_bytes(CONTENT)
    try:
        await directory.install(source, IMAGE, SHA256, ignore)
        assert await directory.digest(IMAGE) == SHA256
        assert [file.size for file in await directory.list()] == [len(CONTENT)]
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


def files_of_injected_commands(tmp_path: Path) -> list[Path]:
    """Return the files of a shell that ran a part of a name as a command."""
    return [*tmp_path.rglob("hacked"), *Path.home().glob("hacked"), *Path().glob("hacked")]


@pytest.mark.parametrize("transport", ["ours", "openssh"])
@pytest_twisted.ensureDeferred
async def test_paths_are_words(
    tmp_path: Path, threads: Threads, sshd: Sshd, transport: str
) -> None:
    """The name of a directory stays one word in every shell."""
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
        assert [file.name for file in await directory.list()] == [META, IMAGE]
        await directory.remove(META)
        assert names(root) == [IMAGE]
    finally:
        await directory.close()
    assert files_of_injected_commands(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_files_of_foreign_names(root: Path, threads: Threads, tmp_path: Path) -> None:
    """A name with newlines or blanks is not taken for another name."""
    (root / "x\n81a4 5 0 .").mkdir()
    confusing_file = root / "x\n81a4 5 0 ." / IMAGE
    confusing_file.write_bytes(b"x")
    (root / f"81a4 5 0 {IMAGE}").write_bytes(b"x")
    (root / "\udcff").write_bytes(b"x")
    directory = scp_directory(root, threads, without_ssh(tmp_path / "bin"))
    try:
        assert await directory.list() == []
        await directory.write(b"123", META)
        assert [file.name for file in await directory.list()] == [META]
    finally:
        await directory.close()


def test_it_implements_the_protocol() -> None:
    """The type checker accepts `ScpFiles` as `RemoteFiles`."""
    opens: type[ScpFiles] = ScpFiles

    def seam(files: ScpFiles) -> RemoteFiles:
        return files

    assert opens is ScpFiles
    assert seam is not None
    assert connection(UNUSED_ACCOUNT).usable
