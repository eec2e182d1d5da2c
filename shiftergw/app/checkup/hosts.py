"""Check the hosts of a remote system.

A small file is created in the image directory and removed again: only that shows whether the
account may write there, and how deliveries would be verified.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shiftergw.app import compose
from shiftergw.app.checkup.finding import NETWORK_LIMIT, Finding, Level, failure, of_free_space
from shiftergw.config import SshDelivery, System
from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.upload import CONFIGURED_SAMPLES
from shiftergw.errors import GatewayError, TimedOut, amount, printable
from shiftergw.plumbing.files import read_whole
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.services import ClosedAtStop, run_services
from shiftergw.plumbing.threads import Threads
from shiftergw.plumbing.timing import within
from shiftergw.ports import InstalledFile
from shiftergw.ssh.keys import check_not_public

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

VERIFICATION_LIMIT = 30.0
"""The time limit for a program on the system, whose shell may start slowly."""

_TEST_CONTENT = b"shiftergw check\n"


@dataclass(frozen=True, slots=True)
class _Host:
    """The findings about a host, and the files that it sees; None if it cannot be used."""

    name: str
    directory: Finding
    files: Sequence[InstalledFile] | None = None
    shortcomings: Sequence[Finding] = ()


async def remote_directory(system: System, section: SshDelivery, reactor: Reactor) -> list[Finding]:
    """Log in to every host of a system and check its image directory there."""
    names = list(dict.fromkeys(system.host))
    hosts = await gather_or_cancel(_host(system, section, name, reactor) for name in names)
    findings = [host.directory for host in hosts]
    if any(finding.level != Level.FAILURE for finding in findings):
        # Not a failure: the gateway uses the hosts that work.
        findings = [
            replace(finding, level=Level.WARNING) if finding.level == Level.FAILURE else finding
            for finding in findings
        ]
    findings += [finding for host in hosts for finding in host.shortcomings]
    if len(hosts) == 1:
        suffix = f" on {hosts[0].name}"
        return [replace(finding, name=finding.name.removesuffix(suffix)) for finding in findings]
    usable = [host for host in hosts if host.files is not None]
    different = [host.name for host in usable if host.files != usable[0].files]
    if different:
        text = f"{usable[0].name} and {', '.join(different)} do not see the same files there"
        remedy = "All hosts of a system must see one directory; if it was busy, check once more."
        findings.append(Finding(f"imageDir of {system.name}", Level.WARNING, text, remedy))
    return findings


async def _host(system: System, section: SshDelivery, host: str, reactor: Reactor) -> _Host:
    threads = Threads(reactor, 1, "check")
    directory = compose.directory_on_host(section, host, reactor, threads)
    async with run_services([threads, ClosedAtStop(directory.close)]):
        return await _examine(system, section, host, directory, threads, reactor)


async def _examine(
    system: System,
    section: SshDelivery,
    host: str,
    directory: RemoteDirectory,
    threads: Threads,
    reactor: Reactor,
) -> _Host:
    """Return the findings about the image directory that one host sees."""
    name = f"imageDir of {system.name} on {host}"
    alone = system.model_copy(update={"host": (host,)})

    async def check() -> tuple[int, Sequence[InstalledFile]]:
        free, files = await directory.free_space(), await directory.list()
        await directory.probe(_TEST_CONTENT)
        return free, files

    try:
        free, files = await within(
            NETWORK_LIMIT,
            reactor,
            check(),
            lambda: TimedOut(f"The system did not answer within {NETWORK_LIMIT:.0f} s."),
        )
        finding = of_free_space(name, f"{alone.directory_name}: {amount(free)} free", free)
        shortcomings = await _shortcomings(
            f"deliveries to {system.name} on {host}", directory, reactor
        )
        return _Host(host, finding, files, shortcomings)
    except GatewayError as error:
        finding = failure(name, await threads.run(_cause, section, error))
        command = f"ssh-trust {shlex.quote(system.name)}"
        remedy = finding.remedy.replace("ssh-trust SYSTEM", command)
        return _Host(host, replace(finding, remedy=remedy))


async def _shortcomings(name: str, directory: RemoteDirectory, reactor: Reactor) -> list[Finding]:
    """Return findings about what makes deliveries less safe than they could be."""
    try:
        verification = await within(
            VERIFICATION_LIMIT,
            reactor,
            directory.test_verification(),
            lambda: TimedOut(f"A program there did not end within {VERIFICATION_LIMIT:.0f} s."),
        )
        texts = [f"of its SFTP server: {text}" for text in await directory.shortcomings()]
    except GatewayError as error:
        return [replace(failure(name, error), level=Level.WARNING)]
    findings = [Finding(name, Level.WARNING, text) for text in texts]
    if verification.method != "sha256":
        text = printable(f"they are checked by their size and samples only: {verification.reason}")
        remedy = "Let the account run `sha256sum` there: samples do not see every damage."
        if verification.reason == CONFIGURED_SAMPLES:
            findings.append(Finding(name, Level.OK, text))
        else:
            findings.append(Finding(name, Level.WARNING, text, remedy))
    return findings


def _cause(section: SshDelivery, error: GatewayError) -> GatewayError:
    """Return why a connection failed: `error`, unless `key` of `section` is a public key. Blocks.

    For a public key, OpenSSH reports a wrong file mode or a refused login. With an agent, a public
    key is correct; so the key is only examined after a failed connection.
    """
    if section.key_file is not None:
        with suppress(OSError):
            try:
                check_not_public(read_whole(section.key_file)[0], section.key_file)
            except GatewayError as cause:
                return cause
    return error
