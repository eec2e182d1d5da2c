"""Compare the host keys of a system's hosts with the known hosts, behind `shiftergw ssh-trust`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.errors import ConfigurationError, DeliveryFailed, printable
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.ssh.connection import CONNECT_SECONDS
from shiftergw.ssh.host_keys import JudgedKey, Verdict, host_keys, judge
from shiftergw.ssh.known_hosts import (
    GLOBAL_FILE,
    KnownHosts,
    KnownHostsLine,
    fingerprint,
    name_of,
    type_of,
    user_file,
)
from shiftergw.ssh.known_hosts_file import add, check_addable, check_host, line_of

if TYPE_CHECKING:
    from shiftergw.config import SshDelivery, System
    from shiftergw.plumbing.reactor import Reactor

__all__ = ["Host", "Key", "Verdict", "add", "check_addable", "file_of", "look"]


@dataclass(frozen=True, slots=True)
class Key:
    """A key that a host has proven to own, and the line that would make it known.

    `conflicts` are the keys that are known instead, or revoked, each with its file and line.
    """

    kind: str
    fingerprint: str
    verdict: Verdict
    line: str
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """The keys of a host, or why they cannot be read; `name` is that of known_hosts files."""

    name: str
    keys: tuple[Key, ...] = ()
    error: DeliveryFailed | None = None

    @property
    def has_changed(self) -> bool:
        """Return whether another key is known; then no key of the host can be trusted."""
        return any(key.verdict == Verdict.CHANGED for key in self.keys)

    @property
    def new_keys(self) -> tuple[Key, ...]:
        """Return the keys that may be added."""
        return tuple(
            key for key in self.keys if key.verdict == Verdict.NEW and not self.has_changed
        )


def file_of(system: System) -> Path:
    """Return the file to which new keys are added; raise `ConfigurationError` if there is none."""
    file = _ssh(system).known_hosts_file or user_file()
    if file is None:
        raise ConfigurationError(
            "This user has no home, so no list of known hosts.", remedy="Set knownHosts in ssh."
        )
    return file


async def look(system: System, reactor: Reactor) -> list[Host]:
    """Return the host keys of every host of a remote system, in the configured order.

    Raises `ConfigurationError` for an invalid host name, and `DeliveryFailed` if the known hosts
    cannot be read.
    """
    ssh = _ssh(system)
    hosts = list(dict.fromkeys(system.host))
    for host in hosts:
        check_host(host)
    file = ssh.known_hosts_file
    files = filter(None, (file,) if file is not None else (user_file(), GLOBAL_FILE))
    known_hosts = KnownHosts.read(files, must_exist=False)
    seconds = ssh.connect_seconds or CONNECT_SECONDS
    return await gather_or_cancel(
        _host(host, ssh.login_port, known_hosts, seconds, reactor) for host in hosts
    )


def _ssh(system: System) -> SshDelivery:
    assert system.ssh_delivery is not None  # the command refuses other systems
    return system.ssh_delivery


async def _host(
    host: str, port: int, known_hosts: KnownHosts, seconds: float, reactor: Reactor
) -> Host:
    name = name_of(host, port)
    try:
        blobs = await host_keys(host, port, reactor, seconds=seconds)
    except DeliveryFailed as error:
        return Host(name, error=error)
    keys = tuple(_key(host, port, key) for key in judge(host, port, blobs, known_hosts))
    return Host(name, keys)


def _key(host: str, port: int, key: JudgedKey) -> Key:
    return Key(
        _kind(key.blob),
        fingerprint(key.blob),
        key.verdict,
        line_of(host, port, key.blob),
        _conflicts(key.lines),
    )


def _kind(blob: bytes) -> str:
    return printable(type_of(blob), 40)


def _conflicts(lines: Sequence[KnownHostsLine]) -> tuple[str, ...]:
    return tuple(
        f"{_kind(line.blob)} {fingerprint(line.blob)} ({printable(line.place)})" for line in lines
    )
