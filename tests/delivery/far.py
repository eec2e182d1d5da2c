"""Remote image directories for tests: on this machine, accessed as if it were another one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

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


def retried_silence(seconds: float) -> float:
    """Return a limit on silence: longer on a busy machine, but short enough for a retry."""
    return min(stretch(seconds), 0.8 * QUICK_SECONDS)


UNUSED_ACCOUNT = OpensshAccount("nowhere", "nobody")
"""An account for a stand-in of `ssh` that ignores it."""
