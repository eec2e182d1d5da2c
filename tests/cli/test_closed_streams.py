"""Commands whose output has no reader or no room, and commands without standard streams."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from shiftergw.cli.convert import default_document
from shiftergw.model.references import ImageReference
from tests.cli.command import ENVIRONMENT, PROGRAM, gateway_for, start
from tests.cli.homes import LIMIT, at_home
from tests.cli.signaled import WORKING, Conversion, silent_server
from tests.patience import patient
from tests.web.fakes import IMAGE_ID, FakeGateway

# Output without a reader.


def _code_without_reader(
    arguments: Sequence[str], env: dict[str, str], after: Callable[[Any], object] | None = None
) -> int:
    """Run a command with its output in a pipe; close the pipe, at once or after a call."""
    process = start(
        *arguments,
        env=env,
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
        ["inspect", "ubuntu:24.04"],
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
