"""Behind `shiftergw ssh-trust`: the host keys of a system's machines, and their known hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

__all__ = ["Host", "Key", "Verdict", "add", "check_addable", "file_of", "look"]


@dataclass(frozen=True, slots=True)
class Key:
    """A key that a host has proven to hold, and the line that would make it known.

    `held` are the keys that are known instead, or revoked, and where each stands.
    """

    kind: str
    fingerprint: str
    verdict: Verdict
    line: str
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """What was found of a host; its `name` is the one that the files use."""

    name: str
    keys: tuple[Key, ...] = ()
    error: DeliveryFailed | None = None

    @property
    def changed(self) -> bool:
        """Say whether another key is known: then nothing that it shows is to be believed."""
        return any(key.verdict == Verdict.CHANGED for key in self.keys)

    @property
    def new(self) -> tuple[Key, ...]:
        """Return the keys that may be added."""
        return tuple(k for k in self.keys if k.verdict == Verdict.NEW and not self.changed)


def file_of(system: System) -> Path:
    """Return the file that a new key is added to; raise `ConfigurationError` if there is none."""
    file = _ssh(system).known_hosts_file or user_file()
    if file is None:
        raise ConfigurationError(
            "This user has no home, so no list of known hosts.", remedy="Set knownHosts in ssh."
        )
    return file


async def look(system: System, reactor: Any) -> list[Host]:
    """Return what there is to say of every host of a remote system, in their order.

    Raises `ConfigurationError` for what is no host, `DeliveryFailed` for known hosts that cannot be
    read.
    """
    ssh = _ssh(system)
    hosts = list(dict.fromkeys(system.host))
    for host in hosts:
        check_host(host)
    configured = ssh.known_hosts_file
    files = filter(None, (configured,) if configured is not None else (user_file(), GLOBAL_FILE))
    known = KnownHosts.read(files, must_exist=False)
    seconds = ssh.connect_seconds or CONNECT_SECONDS
    return await gather_or_cancel(
        _host(host, ssh.login_port, known, seconds, reactor) for host in hosts
    )


def _ssh(system: System) -> SshDelivery:
    assert system.ssh_delivery is not None  # the command refuses other systems
    return system.ssh_delivery


async def _host(host: str, port: int, known: KnownHosts, seconds: float, reactor: Any) -> Host:
    name = name_of(host, port)
    try:
        blobs = await host_keys(host, port, reactor, seconds=seconds)
    except DeliveryFailed as error:
        return Host(name, error=error)
    return Host(name, tuple(_key(host, port, one) for one in judge(host, port, blobs, known)))


def _key(host: str, port: int, one: JudgedKey) -> Key:
    return Key(
        _kind(one.blob),
        fingerprint(one.blob),
        one.verdict,
        line_of(host, port, one.blob),
        _held(one.lines),
    )


def _kind(blob: bytes) -> str:
    return printable(type_of(blob), 40)


def _held(lines: Sequence[KnownHostsLine]) -> tuple[str, ...]:
    return tuple(
        f"{_kind(line.blob)} {fingerprint(line.blob)} ({printable(line.place)})" for line in lines
    )
