"""Signals and broken pipes: each command, as a process, at each stage.

However a command is ended, once or twice: there is no traceback, the exit code tells the cause, and
neither files nor child processes are left.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.cli.command import ENVIRONMENT, PROGRAM, gateway_for
from tests.cli.homes import LIMIT
from tests.cli.signaled import WORKING, Conversion, Outcome, Running, command, silent_server
from tests.matrices import combinations
from tests.patience import patient
from tests.web.fakes import IMAGE_ID, FakeGateway

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


every_signal = pytest.mark.parametrize(("number", "code"), SIGNALS)


every_count = pytest.mark.parametrize("times", [1, 2])


LOADING = """
import os, sys
from shiftergw.cli.start import main

class Signals:
    def find_spec(self, name, path=None, target=None):
        if name == "shiftergw.cli.main":
            for _ in range({times}):
                os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Signals())
main()
"""


FINALIZING = """
import os, sys
from shiftergw.cli.start import main

class Signal:
    def __init__(self, kill=os.kill, pid=os.getpid()):
        self.kill, self.pid = kill, pid

    def __del__(self):
        self.kill(self.pid, {number})

last = Signal()
sys.argv = ["shiftergw", "--version"]
main()
"""


# Signals.


@pytest.mark.parametrize("number", [number for number, _ in SIGNALS])
def test_while_the_interpreter_ends(number: int) -> None:
    """A signal after the end of the command does not change the exit code."""
    program = FINALIZING.format(number=int(number))
    command_line = [sys.executable, "-c", program]
    done = subprocess.run(command_line, env=ENVIRONMENT, timeout=patient(LIMIT), check=False)
    assert done.returncode == 0


@every_signal
@every_count
def test_while_it_is_loaded(number: int, code: int, times: int) -> None:
    """A signal during an import ends the program."""
    program = LOADING.format(number=int(number), times=times)
    done = subprocess.run(
        [sys.executable, "-c", program, "images"],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=patient(LIMIT),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


REQUESTS = [
    ["images"],
    ["lookup", "x:1"],
    ["queue"],
    ["pull", "x:1"],
    ["pull", "--system", "a,b", "x:1"],
    ["expire", "x:1"],
    ["autoexpire"],
    ["rm", "--now", IMAGE_ID],
    ["metrics"],
    ["workers"],
]


@pytest.mark.parametrize(("arguments", "ending", "times"), combinations(REQUESTS, SIGNALS, [1, 2]))
def test_while_a_gateway_is_silent(
    arguments: list[str], ending: tuple[int, int], times: int
) -> None:
    """A signal ends the wait for an answer; `SHIFTERGW_LONG=1` tries all combinations."""
    number, code = ending
    with silent_server() as (host, server):
        env = {
            "SHIFTERGW_GATEWAY": f"http://{host}",
            "SHIFTERGW_SYSTEM": "mycluster",
            "SHIFTERGW_CREDENTIAL": "good:ann",
        }
        with command(*arguments, env=env) as running, server.accept()[0]:
            outcome = running.interrupt(number, times)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("Interrupted.")
    assert outcome.err.count("\n") == 1


@every_signal
@every_count
@pytest_twisted.ensureDeferred
async def test_while_a_pull_is_polled(number: int, code: int, times: int) -> None:
    """The message says that the pull goes on at the gateway."""

    def interrupt_pull(env: dict[str, str]) -> Outcome:
        with command("pull", "x:1", env=env) as running:
            running.expect("Downloading")
            return running.interrupt(number, times)

    async with gateway_for(FakeGateway(pulls=[WORKING])) as env:
        outcome: Any = await deferToThread(interrupt_pull, dict(env))
    assert (outcome.code, outcome.out) == (code, "")
    assert "it goes on" in outcome.err
    assert "Traceback" not in outcome.err


@every_signal
@every_count
def test_while_a_manifest_is_awaited(number: int, code: int, times: int, tmp_path: Path) -> None:
    """`convert` removes its scratch directory."""
    with silent_server() as (host, server):
        arguments = ["convert", "--plain-http", f"{host}/a:1", str(tmp_path / "o")]
        with command(*arguments) as running, server.accept()[0]:
            running.expect("Getting manifest")
            assert len(list(tmp_path.iterdir())) == 1
            outcome = running.interrupt(number, times)
    assert (outcome.code, outcome.out, outcome.err) == (code, "", "Interrupted.\n")
    assert list(tmp_path.iterdir()) == []


def test_nohup(tmp_path: Path) -> None:
    """SIGHUP stays ignored if the caller ignores it."""
    with silent_server() as (host, server):
        arguments = ["convert", "--plain-http", f"{host}/a:1", str(tmp_path / "o")]
        with subprocess.Popen(
            ["nohup", *PROGRAM, *arguments],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            running = Running(process)
            running.expect("Getting manifest")
            with server.accept()[0]:
                process.send_signal(signal.SIGHUP)
                outcome = running.interrupt(signal.SIGTERM, 1)
    assert outcome.code == 143


@every_signal
@every_count
def test_while_an_image_is_converted(
    conversion: Conversion, number: int, code: int, times: int
) -> None:
    """The child process ends with the command."""
    with command(*conversion.arguments) as running:
        child = conversion.child()
        outcome = running.interrupt(number, times)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.endswith("Interrupted.\n")
    assert "Traceback" not in outcome.err
    conversion.check_nothing_is_left(child)
