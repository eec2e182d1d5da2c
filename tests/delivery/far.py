"""Remote image directories for tests: on this machine, accessed as if it were another one."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest_twisted
from twisted.internet.defer import Deferred

from shiftergw.delivery.files import OpenFiles
from shiftergw.delivery.hosts import Hosts
from shiftergw.delivery.remote import RemoteDirectory, RemoteOptions
from shiftergw.delivery.retries import QUICK_SECONDS
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.plumbing.threads import Threads
from shiftergw.ssh.openssh import OpenSsh, OpensshAccount
from tests.installed_reactor import reactor
from tests.parts import need
from tests.patience import stretch
from tests.sshd import Sshd

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 20.0
FIRST_PAUSE = 0.01

_SERVERS = "/usr/lib/openssh:/usr/lib/ssh:/usr/libexec/openssh:/usr/libexec"

_NO_SSH = """#!/bin/sh
while [ "$1" != -- ]; do [ "$1" = -s ] && server={server}; shift; done
{before}
[ -n "$server" ] && exec "$server" {options}
{command}
"""


def sftp_server() -> str:
    """Return the path of OpenSSH's SFTP server."""
    return shutil.which("sftp-server", path=_SERVERS) or need("sftp-server")


def without_ssh(
    directory: Path, *, commands: bool = True, before: str = "", options: str = ""
) -> Mapping[str, str]:
    """Return an environment whose `ssh` runs the SFTP server and commands on this machine.

    It first runs the shell text `before`; `options` are those of the server.
    """
    directory.mkdir()
    script = directory / "ssh"
    command = 'shift 2; exec sh -c "$1"' if commands else "exit 255"
    script.write_text(
        _NO_SSH.format(server=sftp_server(), before=before, command=command, options=options)
    )
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ.get('PATH', os.defpath)}"}


def program_is(tmp_path: Path, name: str, script: str, before: str = "") -> Mapping[str, str]:
    """Return an environment whose `ssh` runs a script instead of the program of this name.

    The shell text `before` stands for the start-up files of the account.
    """
    programs = tmp_path / "far"
    programs.mkdir()
    # Without `openssl`, `sha256sum` computes the digests.
    for program, text in (("openssl", "exit 1"), (name, script)):
        (programs / program).write_text(f"#!/bin/sh\n{text}\n")
        (programs / program).chmod(0o755)
    return without_ssh(tmp_path / "bin", before=f"PATH={programs}:$PATH; {before}")


def large_file(directory: Path, size: int) -> tuple[Path, str]:
    """Write a file of random bytes whose delivery takes a while; return it and its digest."""
    path, chance, digest = directory / "converted", random.Random(size), hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size >> 20):
            piece = chance.randbytes(1 << 20)
            digest.update(piece)
            file.write(piece)
    return path, digest.hexdigest()


def account_on(sshd: Sshd, **changes: Any) -> OpensshAccount:
    """Return an account that a server of the tests accepts."""
    values = {"user": sshd.user, "port": sshd.port, "key": sshd.key, **changes}
    return OpensshAccount("127.0.0.1", **{"known_hosts": sshd.known_hosts, **values})


def connection(
    account: OpensshAccount,
    env: Mapping[str, str] = os.environ,
    idle_seconds: float = IDLE_SECONDS,
) -> OpenSsh:
    """Return a connection with the `ssh` of this machine."""
    return OpenSsh(account, env, reactor, reactor, idle_seconds, CONNECT_SECONDS)


def far_directory(
    account: OpensshAccount,
    root: PurePosixPath,
    threads: Threads,
    env: Mapping[str, str] = os.environ,
    *,
    verify: Literal["sha256", "sample"] = "sha256",
    idle_seconds: float = IDLE_SECONDS,
    ost_count: int = 0,
    before_connect: Callable[[], None] = lambda: None,
    open_files: OpenFiles = SftpFiles.begin,
) -> RemoteDirectory:
    """Return the image directory that the account finds at `root`."""

    async def connect() -> OpenSsh:
        before_connect()
        return connection(account, env, idle_seconds)

    hosts = Hosts({account.host: connect}, reactor)
    return RemoteDirectory(
        hosts,
        root,
        threads,
        reactor,
        RemoteOptions(verify, idle_seconds, open_files, ost_count, FIRST_PAUSE),
    )


def closing(directory: RemoteDirectory) -> Iterator[RemoteDirectory]:
    """Yield an image directory, and close it after the test."""
    yield directory
    pytest_twisted.blockon(Deferred.fromCoroutine(directory.close()))


def retried_silence(seconds: float) -> float:
    """Return a limit on silence: longer on a busy machine, but short enough for a retry."""
    return min(stretch(seconds), 0.8 * QUICK_SECONDS)


Opens = Callable[..., RemoteDirectory]
"""Opens an image directory, which is closed after the test."""

UNUSED_ACCOUNT = OpensshAccount("nowhere", "nobody")
"""An account for a stand-in of `ssh` that ignores it."""
