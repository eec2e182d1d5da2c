"""Make the image directories of systems, and the connections to their hosts, by the configuration.

For each kind of system there is one function `…_delivery`; `shiftergw.app.compose` chooses between
them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from shiftergw.delivery.hosts import HOST_SECONDS, Hosts
from shiftergw.delivery.local import LocalDirectory
from shiftergw.delivery.outage import (
    FIRST_SECONDS,
    GuardedDirectory,
    MonitoredSystem,
    SystemBreaker,
)
from shiftergw.delivery.remote import IDLE_SECONDS, RemoteDirectory, RemoteOptions
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.delivery.stripes import LocalStripes
from shiftergw.ssh import connection as ssh
from shiftergw.ssh import openssh

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from shiftergw.config import LocalDelivery, SshDelivery, System
    from shiftergw.delivery.hosts import Connect
    from shiftergw.plumbing.channel import Connection
    from shiftergw.plumbing.reactor import Reactor
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import BreakerStore, ImageDirectory


@dataclass(frozen=True, slots=True)
class SystemDelivery:
    """The image directory of a system, and how an outage of the system shows.

    `symptom` describes an outage to the user in a few words. A system that does not answer the
    first requests of a pull within `first_seconds` counts as unavailable; None: no such limit.
    """

    directory: ImageDirectory
    symptom: str
    first_seconds: float | None = None

    def with_breaker(
        self, system: System, breakers: BreakerStore, machine: str, clock: IReactorTime
    ) -> GuardedDirectory:
        """Return the directory for pulls, which wait in the queue while the system is down."""
        monitored_system = MonitoredSystem(
            system.name, system.directory_name, machine, self.symptom
        )
        breaker = SystemBreaker(monitored_system, breakers, clock)
        return GuardedDirectory(self.directory, breaker, self.first_seconds)


def local_delivery(
    section: LocalDelivery,
    reactor: Reactor,
    threads: Threads,
    ost_count: int,
    *,
    may_link: bool = True,
) -> SystemDelivery:
    """Return the delivery into a directory that this machine sees."""
    stripes = LocalStripes(ost_count, threads, os.environ, reactor)
    directory = LocalDirectory(section.image_dir, threads, stripes, may_link=may_link)
    return SystemDelivery(directory, "its image directory does not answer")


def ssh_delivery(
    section: SshDelivery, hosts: Sequence[str], reactor: Reactor, threads: Threads, ost_count: int
) -> SystemDelivery:
    """Return the delivery over SSH to whichever of these hosts works."""
    directory = ssh_directory(section, hosts, reactor, threads, ost_count)
    if len(hosts) > 1:
        return SystemDelivery(directory, "none of its hosts answers")
    first_seconds = max(FIRST_SECONDS, section.connect_seconds or 0)
    return SystemDelivery(directory, "its host does not answer", first_seconds)


def ssh_directory(
    section: SshDelivery,
    hosts: Sequence[str],
    reactor: Reactor,
    threads: Threads,
    ost_count: int = 0,
) -> RemoteDirectory:
    """Return the image directory that all of these hosts see; it connects on first use."""
    return RemoteDirectory(
        ssh_hosts(section, hosts, reactor, threads),
        PurePosixPath(section.image_dir),
        threads,
        reactor,
        RemoteOptions(
            verify=section.verify,
            open_files=ScpFiles.begin if section.transfer == "scp" else SftpFiles.begin,
            ost_count=ost_count,
        ),
    )


def ssh_hosts(
    section: SshDelivery, hosts: Sequence[str], reactor: Reactor, threads: Threads
) -> Hosts:
    """Return the hosts of a system that is reached over SSH, and how to connect to each."""
    connects = {host: ssh_connect(section, host, reactor, threads) for host in hosts}
    return Hosts(connects, reactor, HOST_SECONDS + (section.connect_seconds or 0))


def ssh_connect(section: SshDelivery, host: str, reactor: Reactor, threads: Threads) -> Connect:
    """Return a function that connects to a host: with Conch, or with the `ssh` of this machine."""

    async def connect_by_conch() -> Connection:
        return await ssh.connect(
            ssh.SshAccount(
                host,
                section.login_port,
                section.username,
                section.key_file,
                section.passphrase_file,
                section.known_hosts_file,
                section.ciphers,
            ),
            reactor,
            threads,
            connect_seconds=section.connect_seconds or ssh.CONNECT_SECONDS,
            idle_seconds=IDLE_SECONDS,
        )

    async def connect_by_openssh() -> Connection:
        account = openssh.OpensshAccount(
            host,
            section.username,
            section.port,
            section.key,
            section.known_hosts,
            section.ssh_cmd_options,
        )
        return openssh.OpenSsh(account, os.environ, reactor, reactor, IDLE_SECONDS)

    return connect_by_conch if section.transport == "conch" else connect_by_openssh
