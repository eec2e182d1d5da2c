"""What `shiftergw check` finds on the hosts of a remote system.

A small file is made in the image directory and removed again: nothing else tells whether the
account may write there, and how deliveries would be verified.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from shiftergw.app.checkup.finding import NETWORK_LIMIT, Finding, Level, failure, of_free_space
from shiftergw.config import SshDelivery, System
from shiftergw.delivery.factory import ssh_directory
from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.upload import CHOSEN
from shiftergw.errors import GatewayError, TimedOut, amount, printable
from shiftergw.plumbing.files import read_whole
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import InstalledFile
from shiftergw.ssh.keys import check_not_public

VERIFICATION_LIMIT = 30.0
"""Seconds for a program on the system; the start-up files of its shell may be slow."""

_TEST_CONTENT = b"shiftergw check\n"


@dataclass(frozen=True, slots=True)
class _Host:
    """The findings about a host, and the files that it sees; None if it cannot be used."""

    name: str
    directory: Finding
    files: Sequence[InstalledFile] | None = None
    more: Sequence[Finding] = ()


async def remote_directory(system: System, section: SshDelivery, reactor: Any) -> list[Finding]:
    """Log in to every host of a system and look at its image directory there."""
    names = list(dict.fromkeys(system.host))
    hosts = await gather_or_cancel(_host(system, section, name, reactor) for name in names)
    findings = [host.directory for host in hosts]
    if any(finding.level != Level.FAILURE for finding in findings):
        # The gateway will work: it uses the hosts that do.
        findings = [
            replace(one, level=Level.WARNING) if one.level == Level.FAILURE else one
            for one in findings
        ]
    findings += [finding for host in hosts for finding in host.more]
    if len(hosts) == 1:
        only = f" on {hosts[0].name}"
        return [replace(one, name=one.name.removesuffix(only)) for one in findings]
    usable = [host for host in hosts if host.files is not None]
    others = [host.name for host in usable if host.files != usable[0].files]
    if others:
        text = f"{usable[0].name} and {', '.join(others)} do not see the same files there"
        remedy = "All hosts of a system must see one directory; if it was busy, check once more."
        findings.append(Finding(f"imageDir of {system.name}", Level.WARNING, text, remedy))
    return findings


async def _host(system: System, section: SshDelivery, host: str, reactor: Any) -> _Host:
    name = f"imageDir of {system.name} on {host}"
    threads = Threads(reactor, 1, "check")
    threads.startService()
    alone = system.model_copy(update={"host": (host,)})
    directory = ssh_directory(section, [host], reactor, threads)

    async def look() -> tuple[int, Sequence[InstalledFile]]:
        free, files = await directory.free_space(), await directory.list()
        await directory.probe(_TEST_CONTENT)
        return free, files

    try:
        free, files = await within(
            NETWORK_LIMIT,
            reactor,
            look(),
            lambda: TimedOut(f"The system did not answer within {NETWORK_LIMIT:.0f} s."),
        )
        finding = of_free_space(name, f"{alone.directory_name}: {amount(free)} free", free)
        more = await _shortcomings(f"deliveries to {system.name} on {host}", directory, reactor)
        return _Host(host, finding, files, more)
    except GatewayError as error:
        finding = failure(name, await threads.run(_cause, section, error))
        command = f"ssh-trust {shlex.quote(system.name)}"
        remedy = finding.remedy.replace("ssh-trust SYSTEM", command)
        return _Host(host, replace(finding, remedy=remedy))
    finally:
        await directory.close()
        await threads.stopService()


async def _shortcomings(name: str, directory: RemoteDirectory, reactor: Any) -> list[Finding]:
    """Return what makes deliveries less safe than they can be."""
    try:
        verification = await within(
            VERIFICATION_LIMIT,
            reactor,
            directory.try_verification(),
            lambda: TimedOut(f"A program there did not end within {VERIFICATION_LIMIT:.0f} s."),
        )
        texts = [f"of its SFTP server: {text}" for text in await directory.shortcomings()]
    except GatewayError as error:
        return [replace(failure(name, error), level=Level.WARNING)]
    findings = [Finding(name, Level.WARNING, text) for text in texts]
    if verification.method != "sha256":
        text = printable(f"they are checked by their size and samples only: {verification.reason}")
        remedy = "Let the account run `sha256sum` there: samples do not see every damage."
        if verification.reason == CHOSEN:
            findings.append(Finding(name, Level.OK, text))
        else:
            findings.append(Finding(name, Level.WARNING, text, remedy))
    return findings


def _cause(section: SshDelivery, error: GatewayError) -> GatewayError:
    """Return why a connection failed: `error`, unless `key` of `section` is a public key. Blocks.

    OpenSSH itself complains of the key's mode, or of a login that was refused. With an agent a
    public key is right, so only a connection that failed is looked into.
    """
    if section.key_file is not None:
        with suppress(OSError):
            try:
                check_not_public(read_whole(section.key_file)[0], section.key_file)
            except GatewayError as cause:
                return cause
    return error
