"""Real shells complete the names of images."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.cli.command import ENVIRONMENT, gateway_for
from tests.parts import need
from tests.patience import patient
from tests.web.fakes import READY, FakeGateway

PROGRAM = f"#!{sys.executable}\nfrom shiftergw.cli.start import main\nmain()\n"

SETUP = {
    "bash": 'eval "$(_SHIFTERGW_COMPLETE=bash_source shiftergw)"',
    "zsh": "bindkey -e; autoload -U compinit; compinit -D;"
    ' eval "$(_SHIFTERGW_COMPLETE=zsh_source shiftergw)"',
}
SHELLS = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}


class Shell:
    """An interactive shell on a terminal of its own."""

    def __init__(self, name: str, env: Mapping[str, str]) -> None:
        """Start the shell."""
        need(name)
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            SHELLS[name], stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
        )
        os.close(slave)
        self.output = b""

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Wait until a text is shown; return what is shown up to it."""
        deadline = time.monotonic() + patient(20)
        while text.encode() not in self.output:
            seconds = deadline - time.monotonic()
            if seconds < 0 or not select.select([self._master], [], [], seconds)[0]:
                raise TimeoutError(self.output)
            self.output += os.read(self._master, 4096)
        before, _, self.output = self.output.partition(text.encode())
        return before.decode()

    def close(self) -> None:
        """Kill the shell."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@contextmanager
def shell(name: str, env: Mapping[str, str]) -> Iterator[Shell]:
    """Start a shell, and kill it at the end."""
    running_shell = Shell(name, env)
    try:
        yield running_shell
    finally:
        running_shell.close()


def complete_in(name: str, env: Mapping[str, str]) -> str:
    """Have a shell complete words in two lines; return what the commands got as arguments."""
    with shell(name, env) as session:
        session.type(f"PS1='$ '; {SETUP[name]}; echo read''y\n")
        session.expect("ready\r\n")
        # printf stands for the program: the shell completes for the name of the program alone.
        session.type("shiftergw lookup ubuntu:2\t\x01printf '<%s>' \x05\n")
        session.expect("<shiftergw><lookup><ubuntu:24.04>")
        session.type("shiftergw pull custom:\t\x01printf '<%s>' \x05\n")
        return session.expect("<shiftergw><pull><custom:mine:1>")


def complete_in_fish(env: Mapping[str, str]) -> str:
    """Have fish complete two lines."""
    need("fish")
    lines = (
        "_SHIFTERGW_COMPLETE=fish_source shiftergw | source",
        'complete -C "shiftergw lookup ubuntu:2"',
        'complete -C "shiftergw pull --system mycluster,o"',
    )
    return subprocess.run(
        ["fish", "--no-config", "-c", "\n".join(lines)],
        env=env, capture_output=True, text=True, check=True, timeout=patient(30),
    ).stdout  # fmt: skip


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """Return an environment with the program in its PATH, and a home directory."""
    program = tmp_path / "bin" / "shiftergw"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    return {
        **ENVIRONMENT,
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "TERM": "dumb",
    }


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
@pytest_twisted.ensureDeferred
async def test_a_shell(name: str, variables: dict[str, str]) -> None:
    """Each shell completes names with colons, and lists of systems."""
    custom = replace(READY, itype="custom", tags=("mine:1",))
    images = [replace(READY, tags=("ubuntu:24.04", "b:1")), custom]
    fake = FakeGateway(systems=("mycluster", "other"), images=images)
    async with gateway_for(fake) as env:
        if name == "fish":
            output = await deferToThread(complete_in_fish, {**variables, **env})
            assert output.split() == ["ubuntu:24.04", "mycluster,other"]
        else:
            await deferToThread(complete_in, name, {**variables, **env})
