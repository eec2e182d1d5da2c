"""Which connection leads to a system, which protocol to its files, and who watches over it."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from shiftergw.delivery.hosts import HOST_SECONDS, Hosts
from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.outage import FIRST_SECONDS, GuardedDirectory, SystemBreaker
from shiftergw.delivery.remote import IDLE_SECONDS, RemoteDirectory
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.delivery.stripes import LocalStripes
from shiftergw.ssh import connection as ssh
from shiftergw.ssh import openssh

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.config import System
    from shiftergw.delivery.files import OpenFiles
    from shiftergw.delivery.hosts import Connect
    from shiftergw.delivery.outage import WritableDirectory
    from shiftergw.plumbing.channel import Connection
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import BreakerStore


def hosts_of(system: System, reactor: Any, threads: Threads) -> Hosts:
    """Return the hosts of a remote system, and the ways to them."""
    ways = {host: way_to(system, host, reactor, threads) for host in system.host}
    patience = system.ssh.connect_seconds if system.ssh is not None else None
    return Hosts(ways, reactor, HOST_SECONDS + (patience or 0))


def way_to(system: System, host: str, reactor: Any, threads: Threads) -> Connect:
    """Return what connects to a host of a remote system: our own SSH, or the site's `ssh`."""
    section = system.ssh
    assert section is not None  # a remote system without it does not load
    native = ssh.Account(
        host,
        section.login_port,
        section.username,
        section.key_file,
        section.passphrase_file,
        section.known_hosts_file,
        section.ciphers,
    )
    connect_seconds = section.connect_seconds or ssh.CONNECT_SECONDS
    site = openssh.Account(
        host,
        section.username,
        section.port,
        section.key,
        section.known_hosts,
        section.ssh_cmd_options,
    )

    async def by_our_own() -> Connection:
        return await ssh.connect(
            native,
            reactor,
            threads,
            connect_seconds=connect_seconds,
            idle_seconds=IDLE_SECONDS,
        )

    async def by_the_sites() -> Connection:
        return openssh.OpenSsh(site, os.environ, reactor, reactor, IDLE_SECONDS)

    return by_our_own if section.transport == "conch" else by_the_sites


def files_of(system: System) -> OpenFiles:
    """Return what begins a session with the files of a remote system: SFTP, or SCP."""
    assert system.ssh is not None  # a remote system without it does not load
    return ScpFiles.begin if system.ssh.transfer == "scp" else SftpFiles.begin


def image_directory(
    reactor: Any, system: System, threads: Threads, ost_count: int = 0
) -> LocalDirectory | RemoteDirectory:
    """Return where the images of a system go; a remote one is opened on use and is to be closed."""
    if system.access_type == "local":
        stripes = LocalStripes(ost_count, threads, os.environ, reactor)
        return LocalDirectory(system.image_dir, threads, stripes)
    ssh = system.ssh
    assert ssh is not None  # a system without it does not load
    return RemoteDirectory(
        hosts_of(system, reactor, threads),
        PurePosixPath(ssh.image_dir),
        threads,
        reactor,
        ssh.verify,
        open_files=files_of(system),
        ost_count=ost_count,
    )


def guarded(
    directory: WritableDirectory,
    system: System,
    breakers: BreakerStore,
    machine: str,
    clock: IReactorTime,
) -> GuardedDirectory:
    """Return the image directory of a system for which pulls wait while it does not answer."""
    symptom = "its host does not answer"
    first_seconds = None
    if system.access_type == "local":
        symptom = "its image directory does not answer"
    elif len(system.host) > 1:
        symptom = "none of its hosts answers"
    elif system.ssh is not None:
        first_seconds = max(FIRST_SECONDS, system.ssh.connect_seconds or 0)
    name = system.directory_name
    breaker = SystemBreaker(system.name, name, symptom, breakers, machine, clock)
    return GuardedDirectory(directory, breaker, first_seconds)
