"""ssh-trust: add the host keys of a remote system to the known hosts, after a comparison."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shiftergw.cli.exits import (
    DONE,
    FAILURE,
    MISUSE,
    Misuse,
    report_interruption,
    text_of,
)
from shiftergw.cli.options import config_option
from shiftergw.cli.prompts import terminal
from shiftergw.cli.reactor import exit_code_of
from shiftergw.config import Config, System, file_of_environment
from shiftergw.errors import ConfigurationError, printable
from shiftergw.plumbing.signals import InterruptedBySignal

if TYPE_CHECKING:
    from shiftergw.app.trust import Host, Key
    from shiftergw.plumbing.reactor import Reactor

_FINGERPRINT = re.compile("SHA256:[A-Za-z0-9+/]{43}")
_WIDTH = 19
"""Characters of the longest type of key."""

_QUESTION = """\
New keys of {host}: {keys}. Compare their fingerprints with what the system's admins say.
Add them to {file}? (yes/no) """
_NO_TERMINAL = (
    "Nothing is added, since there is no terminal to ask on. Compare the fingerprints of the new"
    " keys with what the system's admins say, and give each that is right: --fingerprint SHA256:..."
)


@click.command("ssh-trust")
@config_option
@click.option(
    "--fingerprint",
    "fingerprints",
    multiple=True,
    metavar="SHA256:...",
    help="Add the key that has it, without a question; repeatable.",
)
@click.argument("system")
def ssh_trust(config_file: Path | None, fingerprints: tuple[str, ...], system: str) -> None:
    """Show the SSH host keys of SYSTEM, and add new ones to its known hosts.

    Run it as the gateway's user. Each host is asked for its keys, without a login, and new ones are
    added when you say yes. Compare them with what the system's admins tell you; on the host itself,
    `ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub` shows one. A key that has changed, or was
    revoked, is never added.

    Exits with 1 if a host cannot be reached, or a key was not believed.
    """
    for fingerprint in fingerprints:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise Misuse(f"{fingerprint!r} is no fingerprint: SHA256: and 43 characters.")
    remote_system = _system(config_file, system)
    hosts: list[Host] = []

    async def command(reactor: Reactor) -> int:
        from shiftergw.app import trust  # noqa: PLC0415 - not needed for `--help`

        hosts.extend(await trust.look(remote_system, reactor))
        return DONE

    code = exit_code_of(command, "Interrupted: nothing is added.")
    if code == DONE:
        try:
            code = _add_trusted(hosts, remote_system, fingerprints)
        except ConfigurationError as error:
            raise Misuse(text_of(error)) from error
        except InterruptedBySignal:
            report_interruption("\nInterrupted: nothing more is added.")
            raise
    sys.exit(code)


def _system(config_file: Path | None, name: str) -> System:
    """Return the remote system of that name; raise `Misuse` if there is none."""
    try:
        config = Config.load(config_file or file_of_environment(os.environ), os.environ).config
    except ConfigurationError as error:
        raise Misuse(text_of(error)) from error
    system = config.systems.get(name)
    if system is None:
        raise Misuse(f"There is no system {name!r}; there is: {', '.join(config.systems)}.")
    if system.ssh_delivery is None:
        raise Misuse(f"The system {name} is local: the gateway needs no SSH to it.")
    return system


def _add_trusted(hosts: Sequence[Host], system: System, fingerprints: Collection[str]) -> int:
    """Show the keys, add those that the user trusts, and return the exit code."""
    for host in hosts:
        _show(host)
    warnings = [warning for host in hosts for warning in _warnings(host, system)]
    for warning in warnings:
        click.echo(warning, err=True)
    code = _add_listed(hosts, system, fingerprints) if fingerprints else _ask_and_add(hosts, system)
    return FAILURE if warnings else code


def _show(host: Host) -> None:
    click.echo(host.name)
    for key in host.keys:
        click.echo(f"  {key.kind:{_WIDTH}} {key.fingerprint} {key.verdict}")
        for conflict in key.conflicts:
            click.echo(f"    {conflict}")


def _warnings(host: Host, system: System) -> Iterator[str]:
    """Yield what an admin must take care of, and why a key is not added."""
    if host.error is not None:
        yield f"{host.name}: {text_of(host.error)}"
        if system.ssh_delivery is not None and system.ssh_delivery.transport == "openssh":
            yield (
                f"{host.name} was connected directly: jump hosts, and what else is in ssh's own"
                " configuration, are not seen by this command. Add the key by hand where it cannot"
                " be reached otherwise."
            )
    if host.has_changed:
        yield (
            f"{host.name} is known by another key than it has shown. Either its admins have"
            " changed the key, or another machine answers in its place and would get all that is"
            " sent. Ask them. If it was changed: remove the old line, named above, by hand, and run"
            " this again. Nothing is added for this host."
        )
    if any(key.verdict == "revoked" for key in host.keys):
        yield (
            f"{host.name} has shown a key that is revoked: whoever wrote the line named above does"
            " not trust it any more, perhaps because it was stolen. It is not added. If that is"
            " wrong, remove the line by hand."
        )


def _add_listed(hosts: Sequence[Host], system: System, fingerprints: Collection[str]) -> int:
    """Add the new keys with these fingerprints; return the exit code."""
    from shiftergw.app import trust  # noqa: PLC0415 - as above

    _add(
        trust.file_of(system),
        [key for host in hosts for key in host.new_keys if key.fingerprint in fingerprints],
    )
    missing = set(fingerprints) - {key.fingerprint for host in hosts for key in host.keys}
    for fingerprint in sorted(missing):
        click.echo(f"No host has shown a key with {fingerprint}.", err=True)
    return FAILURE if missing else DONE


def _ask_and_add(hosts: Sequence[Host], system: System) -> int:
    """Ask the user about the new keys of each host, and add them on a yes."""
    from shiftergw.app import trust  # noqa: PLC0415 - as above

    new_hosts = [host for host in hosts if host.new_keys]
    if not new_hosts:
        return DONE
    file = trust.file_of(system)
    trust.check_addable(file)
    code = DONE
    with terminal() as ask:
        if ask is None:
            click.echo(_NO_TERMINAL, err=True)
            return MISUSE
        for host in new_hosts:
            place = printable(str(file), 1000)
            answer = ask.line(_QUESTION.format(host=host.name, keys=len(host.new_keys), file=place))
            if answer.strip().lower() == b"yes":
                _add(file, host.new_keys)
            else:
                click.echo(f"Nothing is added for {host.name}.", err=True)
                code = FAILURE
    return code


def _add(file: Path, keys: Sequence[Key]) -> None:
    from shiftergw.app import trust  # noqa: PLC0415 - as above

    if keys:
        trust.add(file, [key.line for key in keys])
        click.echo(f"Added to {printable(str(file), 1000)}: {len(keys)}.", err=True)
