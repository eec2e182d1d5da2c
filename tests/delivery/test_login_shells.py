"""Deliveries to accounts whose login shell prints, waits or refuses are still verified."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.delivery.remote import RemoteDirectory
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.errors import DeliveryFailed
from shiftergw.model.records import Progress
from shiftergw.ports import Verification
from shiftergw.sftp.outgoing_file import REACH
from tests.delivery.contract import IMAGE, META, ignore, names
from tests.delivery.login_shells import server_with_shell
from tests.delivery.ssh_systems import System
from tests.matrices import combinations
from tests.parts import need
from tests.sshd import Sshd

LARGE = os.urandom(REACH + (1 << 20))
SHA256 = hashlib.sha256(LARGE).hexdigest()
HOLE = slice(40_000, 130_000)
"""Bytes that no sample hits."""

SLOW_SECONDS = 1

GREETINGS = {
    "bash": ("bash", ".bashrc", "echo Welcome"),
    "tcsh": ("tcsh", ".tcshrc", "echo Welcome"),
    "fish": ("fish", ".config/fish/config.fish", "echo Welcome"),
    "zsh": ("zsh", ".zshenv", "echo Welcome"),
    "no newline": ("bash", ".bashrc", "printf Welcome"),
    "CRLF": ("bash", ".bashrc", "printf 'Welcome\\r\\n\\r\\n'"),
    "a digest": ("bash", ".bashrc", f"echo '{'0' * 64}  -'"),
    "standard error": ("bash", ".bashrc", "echo 'sha256sum: x: Input/output error' >&2"),
    "huge": ("bash", ".bashrc", "head -c 3000000 /dev/zero | tr '\\0' '\\n'"),
    "slow": ("bash", ".bashrc", f"echo Wait; sleep {SLOW_SECONDS}; echo Welcome"),
    "afterwards": ("bash", ".bashrc", "trap 'echo Goodbye; exit 5' EXIT"),
    "afterwards in tcsh": ("tcsh", ".tcshrc", "set echo; set verbose"),
    "afterwards in fish": (
        "fish", ".config/fish/config.fish", "function f --on-event fish_exit; echo Goodbye; end"
    ),
    "tracing": ("bash", ".bashrc", "BASH_XTRACEFD=1; set -x"),
    "another directory": ("bash", ".bashrc", "cd /proc; umask 0"),
}  # fmt: skip


@pytest.fixture
def large(tmp_path: Path, root: Path) -> Path:
    """Give a converted file, and a part of it with a hole in the image directory."""
    part = bytearray(LARGE)
    part[HOLE] = bytes(len(part[HOLE]))
    (root / f"{IMAGE}.partial.{SHA256[:16]}").write_bytes(part)
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


async def install_over_part(directory: RemoteDirectory, source: Path, root: Path) -> Verification:
    """Deliver the file; check that the old part was not used and the file is right."""
    reports: list[Progress] = []
    verification = await directory.install(source, IMAGE, SHA256, reports.append)
    assert reports[0].done <= REACH
    assert names(root) == [IMAGE]
    assert (root / IMAGE).read_bytes() == LARGE
    return verification


SFTP, SCP = ("conch", SftpFiles.begin), ("openssh", ScpFiles.begin)
BY_SCP = ("bash", "tcsh", "fish", "CRLF", "afterwards", "another directory")


@pytest.mark.parametrize(
    ("greeting", "system", "open_files"),
    [
        *(pytest.param(name, *SFTP, id=f"sftp-{name}") for name in GREETINGS),
        *(pytest.param(name, *SCP, id=f"scp-{name}") for name in BY_SCP),
    ],
    indirect=["system"],
)
@pytest_twisted.ensureDeferred
async def test_shell_that_greets(
    system: System, root: Path, tmp_path: Path, large: Path, greeting: str, open_files: Any
) -> None:
    """Whatever a shell prints before and after a command, the digest of the file is compared."""
    with server_with_shell(tmp_path / "home", *GREETINGS[greeting]) as sshd:
        directory = system.directory([system.connector(sshd)], root, open_files=open_files)
        assert await install_over_part(directory, large, root) == Verification("sha256")
        assert await directory.digest(IMAGE) == SHA256


FORCED_COMMANDS = {
    "another shell": 'sh -c "$SSH_ORIGINAL_COMMAND"; echo Goodbye; exit 0',
    "its own status": 'echo "$SSH_ORIGINAL_COMMAND"; bash -c "$SSH_ORIGINAL_COMMAND"; exit 255',
    "a terminal": 'exec script -qc "$SSH_ORIGINAL_COMMAND" /dev/null < /dev/null',
}


@pytest.mark.parametrize("how", FORCED_COMMANDS)
@pytest_twisted.ensureDeferred
async def test_forced_command_that_runs_commands(
    system: System, root: Path, tmp_path: Path, large: Path, how: str
) -> None:
    """A forced command that runs the requested command does not prevent the digest."""
    need("script")
    with server_with_forced_command(tmp_path, FORCED_COMMANDS[how]) as sshd:
        directory = system.directory([system.connector(sshd)], root)
        assert await install_over_part(directory, large, root) == Verification("sha256")


def server_with_forced_command(tmp_path: Path, text: str) -> Sshd:
    """Return a server with SFTP that runs a shell text instead of every command."""
    script = tmp_path / "forced"
    sftp = "internal-sftp*) exec /usr/lib/openssh/sftp-server;;"
    script.write_text(f"#!/bin/sh\ncase $SSH_ORIGINAL_COMMAND in {sftp} esac\n{text}\n")
    script.chmod(0o755)
    return Sshd(f"ForceCommand {script}")


NO_COMMANDS = "the account runs no commands"
REFUSALS = {
    "nologin": ("shell", "/usr/sbin/nologin", NO_COMMANDS),
    "false": ("shell", "/bin/false", NO_COMMANDS),
    "internal-sftp": ("settings", "ForceCommand internal-sftp", NO_COMMANDS),
    "a menu": ("forced", "echo 'Choose 1 or 2'; exit 1", NO_COMMANDS),
    # The `ssh` of OpenSSH exits with 255 after its own errors, too.
    "255": ("forced", "echo 'No such command.' >&2; exit 255", NO_COMMANDS),
    "prints without end": ("forced", "exec yes", NO_COMMANDS),
    "no sha256sum": ("settings", "SetEnv PATH=/nowhere", NO_COMMANDS),
    "sha256sum alone": ("settings", "SetEnv PATH={bin}", "the system has no sha256sum"),
}


@pytest.mark.parametrize(
    ("how", "system"), combinations(list(REFUSALS), ["openssh", "conch"]), indirect=["system"]
)
@pytest_twisted.ensureDeferred
async def test_account_without_digests(
    system: System, root: Path, tmp_path: Path, large: Path, how: str
) -> None:
    """Without a digest an old part is read back, and the result says how the file was compared."""
    kind, what, reason = REFUSALS[how]
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to(need("sh"))
    if kind == "shell":
        sshd = server_with_shell(tmp_path / "home", what)
    elif kind == "forced":
        sshd = server_with_forced_command(tmp_path, what)
    else:
        sshd = Sshd(what.format(bin=programs))
    with sshd:
        directory = system.directory([system.connector(sshd)], root)
        assert await install_over_part(directory, large, root) == Verification("samples", reason)
        assert await directory.digest(IMAGE) == SHA256


@pytest_twisted.ensureDeferred
async def test_small_file_without_digests(system: System, root: Path, tmp_path: Path) -> None:
    """A file that is smaller than the samples is compared completely, and the result says so."""
    source = tmp_path / "small"
    source.write_bytes(LARGE[:100_000])
    with Sshd("ForceCommand internal-sftp") as sshd:
        directory = system.directory([system.connector(sshd)], root)
        sha256 = hashlib.sha256(LARGE[:100_000]).hexdigest()
        verification = await directory.install(source, IMAGE, sha256, ignore)
    assert verification == Verification("read-back", NO_COMMANDS)


GRANDPARENT = 'while read -r key pid; do [ "$key" != PPid: ] || kill -9 "$pid"; done'
KILLS = {
    "the program": "kill -9 $PPID",
    "all of the session": f"{GRANDPARENT} < /proc/$PPID/status; kill -9 $PPID",
}


@pytest.mark.parametrize("victim", KILLS)
@pytest_twisted.ensureDeferred
async def test_program_that_is_killed(system: System, root: Path, large: Path, victim: str) -> None:
    """A digest program that is killed is an error: samples do not replace the digest."""
    with Sshd("SetEnv PATH=/nowhere") as sshd:
        directory = system.directory([system.connector(sshd)], root)
        await directory.write(b"x", META)
    programs = root.parent / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to(need("sh"))
    (programs / "head").symlink_to(need("head"))
    (programs / "sha256sum").write_text(f"#!/bin/sh\n{KILLS[victim]}\n")
    (programs / "sha256sum").chmod(0o755)
    with Sshd(f"SetEnv PATH={programs}") as sshd:
        directory = system.directory([system.connector(sshd)], root)
        with pytest.raises(DeliveryFailed):
            await directory.install(large, IMAGE, SHA256, ignore)
    assert IMAGE not in names(root)
