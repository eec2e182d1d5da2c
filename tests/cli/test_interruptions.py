"""Signals and broken pipes: each command, as a process, at each stage.

However a command is ended, once or twice: there is no traceback, the exit code tells the cause, and
neither files nor child processes are left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from shiftergw.cli.convert import default_document
from shiftergw.model.records import ImageRecord
from shiftergw.model.references import ImageReference
from shiftergw.states import State
from tests.cli.command import ENVIRONMENT, PROGRAM, gateway_for
from tests.cli.homes import LIMIT, at_home
from tests.images import entry, oci_layout, tar_of
from tests.matrices import combinations
from tests.parts import need
from tests.patience import patient
from tests.registries import DockerRegistry
from tests.web.fakes import IMAGE_ID, FakeGateway

WORKING = ImageRecord(system="mycluster", status=State.PULLING)

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


@dataclass
class Outcome:
    """The exit code and the output of a process."""

    code: int
    out: str
    err: str


@dataclass
class Running:
    """A running command."""

    process: subprocess.Popen[str]

    def expect(self, line: str) -> None:
        """Read standard error up to a line."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            if text.startswith(line):
                return
        raise AssertionError(f"{line!r} was not printed")

    def interrupt(self, number: int, times: int) -> Outcome:
        """Send signals and wait for the end."""
        for _ in range(times):
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=patient(LIMIT))
        return Outcome(self.process.returncode, out, err)


@contextmanager
def command(*arguments: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    """Run a command."""
    with subprocess.Popen(
        [*PROGRAM, *arguments],
        env={**ENVIRONMENT, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


@contextmanager
def silent_server() -> Iterator[tuple[str, socket.socket]]:
    """Run a server that accepts connections and does not answer; the value is its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}", server


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
            running.expect("PULLING")
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


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Run a registry that has `a/b:1`."""
    root = tmp_path_factory.mktemp("registry")
    oci_layout(root / "layout", [tar_of([entry("etc"), entry("etc/motd", b"hello\n")])])
    with DockerRegistry(root / "registry") as running:
        running.push(root / "layout", "a/b:1")
        yield running


@dataclass
class Conversion:
    """A `convert` whose `mksquashfs` never ends: its arguments, and its files."""

    arguments: Sequence[str]
    pid_file: Path
    out: Path
    expand: Path

    def child(self) -> int:
        """Return the process id of the `mksquashfs` once it runs."""
        deadline = time.monotonic() + patient(LIMIT)
        while not self.pid_file.exists() or not self.pid_file.read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return int(self.pid_file.read_text())

    def check_nothing_is_left(self, child: int) -> None:
        """Check that the child has ended, and that no file is left."""
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
        assert list(self.out.parent.iterdir()) == []
        assert [path for path in self.expand.rglob("*") if path.is_file()] == []


@pytest.fixture
def conversion(registry: DockerRegistry, tmp_path: Path) -> Conversion:
    """Return a conversion that reaches `mksquashfs`, which never ends."""
    pid_file = tmp_path / "pid"
    script = tmp_path / "mksquashfs"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-version*) exec {need("mksquashfs")} -version;; esac\n'
        f"echo $$ > {pid_file}\nexec sleep 1000\n"
    )
    script.chmod(0o755)
    document = default_document(
        ImageReference.parse(f"{registry.host}/x"), tmp_path / "scratch", plain_http=True
    )
    (tmp_path / "scratch").mkdir()
    document |= {"DefaultImageLocation": registry.host, "Mksquashfs": str(script)}
    config = tmp_path / "imagemanager.json"
    config.write_text(json.dumps(document))
    out = tmp_path / "out" / "image"
    out.parent.mkdir()
    arguments = ["convert", "--config", str(config), "a/b:1", str(out)]
    return Conversion(arguments, pid_file, out, Path(document["ExpandDirectory"]))


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


# Output without a reader.


def _code_without_reader(
    arguments: Sequence[str], env: dict[str, str], after: Callable[[Any], object] | None = None
) -> int:
    """Run a command with its output in a pipe; close the pipe, at once or after a call."""
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        env={**ENVIRONMENT, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            if after is not None:
                after(process.stdout)
        return process.wait(LIMIT)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["pull", "--help"],
        ["--no-such-option"],
        ["images"],
        ["lookup", "x:1"],
        ["lookup", "ubuntu:24.04"],
        ["queue", "--json"],
        ["pull", "x:1"],
        ["pull", "--system", "mycluster,other", "x:1"],
        ["expire", "x:1"],
        ["autoexpire"],
        ["rm", "--now", IMAGE_ID],
        ["metrics"],
        ["workers"],
        ["check", "--config", "/nonexistent"],
        ["check", "--config", "{config}"],
        ["check", "--config", "{config}", "--database"],
        ["migrate", "--config", "{config}"],
        ["convert", "UPPER", "{home}/o"],
        ["ssh-trust", "--config", "{config}", "none"],
        ["login"],
        ["logout"],
    ],
    ids=" ".join,
)
@pytest_twisted.ensureDeferred
async def test_the_reader_has_gone(arguments: list[str], tmp_path: Path) -> None:
    """`shiftergw ... 2>&1 | true` ends at once, like other programs."""
    config = tmp_path / "imagemanager.json"
    document = default_document(ImageReference.parse("a.example/b"), tmp_path, plain_http=True)
    config.write_text(json.dumps(document))
    command_line = [argument.format(config=config, home=tmp_path) for argument in arguments]
    async with gateway_for(FakeGateway(pulls=[WORKING])) as env:
        code: Any = await deferToThread(
            _code_without_reader, command_line, {**env, **at_home(tmp_path / "home")}
        )
    assert code == 141


@pytest_twisted.ensureDeferred
async def test_the_reader_goes_in_mid_pull() -> None:
    """`pull ... 2>&1 | head -1` ends, although nothing more is printed."""
    async with gateway_for(FakeGateway(pulls=[WORKING])) as env:
        code: Any = await deferToThread(
            _code_without_reader, ["pull", "x:1"], dict(env), lambda output: output.readline()
        )
    assert code == 141


def test_the_reader_goes_before_a_conversion(tmp_path: Path) -> None:
    """`convert ... 2>&1 | head -1` ends, and leaves no scratch directory."""
    with silent_server() as (host, _):
        arguments = ["convert", "--plain-http", f"{host}/a:1", str(tmp_path / "o")]
        assert _code_without_reader(arguments, {}, lambda output: output.readline()) == 141
    assert list(tmp_path.iterdir()) == []


def test_the_reader_goes_in_mid_conversion(conversion: Conversion) -> None:
    """The child process ends with the command, and no file is left."""
    children = []
    code = _code_without_reader(
        conversion.arguments, {}, lambda _: children.append(conversion.child())
    )
    assert code == 141
    conversion.check_nothing_is_left(children[0])


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--config", "{config}"]])
def test_a_full_disk(arguments: list[str], tmp_path: Path) -> None:
    """Output that cannot be written is an error with a message."""
    config = tmp_path / "imagemanager.json"
    document = default_document(ImageReference.parse("a.example/b"), tmp_path, plain_http=True)
    config.write_text(json.dumps(document))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, *(argument.format(config=config) for argument in arguments)],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "Error: the output cannot be written: No space left on device.\n",
    )


def test_a_full_disk_for_errors_too(tmp_path: Path) -> None:
    """Without any output the exit code reports the error."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "convert", "UPPER", "o"],
            env=ENVIRONMENT,
            cwd=tmp_path,
            stdout=full,
            stderr=full,
            timeout=LIMIT,
            check=False,
        )
    assert done.returncode == 1


def test_streams_that_are_closed(tmp_path: Path) -> None:
    """With `>&- 2>&-` no file gets their numbers, and the work is done."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *PROGRAM, "convert", "UPPER", "o"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        timeout=patient(LIMIT),
        check=False,
    )
    assert done.returncode == 2


def test_check_without_standard_output(tmp_path: Path) -> None:
    """A stream that is closed has no terminal to ask about."""
    config = tmp_path / "imagemanager.json"
    document = default_document(ImageReference.parse("a.example/b"), tmp_path, plain_http=True)
    config.write_text(json.dumps(document))
    command = [*PROGRAM, "check", "--config", str(config)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=patient(LIMIT),
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_a_password_from_a_closed_standard_input(tmp_path: Path) -> None:
    """A closed standard input counts as empty."""
    command = [*PROGRAM, "--system", "a", "login", "-u", "ann", "--password-stdin"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command],
        env={**ENVIRONMENT, **at_home(tmp_path / "home")},
        stderr=subprocess.PIPE,
        text=True,
        timeout=patient(LIMIT),
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "Error: There is no password. Nothing is kept.\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_of_another_encoding(encoding: str, tmp_path: Path) -> None:
    """Characters that the encoding does not have are escaped."""
    config = tmp_path / "imagemanager.json"
    document = default_document(ImageReference.parse("a.example/b"), tmp_path, plain_http=True)
    config.write_text(json.dumps(document | {"Mksquashfs": "/nonexistent"}))
    done = subprocess.run(
        [*PROGRAM, "check", "--config", str(config)],
        env={**ENVIRONMENT, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=patient(LIMIT),
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    assert rb"\u2192 " in done.stdout
