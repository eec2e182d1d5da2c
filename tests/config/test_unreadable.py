"""Tests of unreadable files: each causes a clear error and no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shiftergw.config import Config
from shiftergw.config.source import LARGEST
from shiftergw.errors import ConfigurationError
from tests.cli.command import shiftergw
from tests.configurations import SMALLEST
from tests.patience import patient

START = json.dumps(SMALLEST).encode()[:-1] + b", "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (START + b'"WorkerThreads": ' + b"9" * 5000 + b"}", "more than 4300 digits"),
        (START + b'"WorkerThreads": -' + b"9" * 5000 + b"}", "more than 4300 digits"),
        (START + b'"WorkerThreads": ' + b"9" * 4299 + b"}", "WorkerThreads: is too large"),
        (START + b'"UserLimits": {"waiting": -1' + b"0" * 30 + b"}}", "UserLimits.waiting: is too"),
        (START + b'"WorkerThreads": "' + b"9" * 5000 + b'"}', "must be a whole number"),
        (START + b'"FailureHold": NaN}', "must be a finite number"),
        (START + b'"FailureHold": 1e999}', "must be a finite number"),
        (START + b'"WorkerThreads": Infinity}', "must be a whole number"),
        (START + b'"MaxImageSize": -Infinity}', "must be a whole number"),
        (b"[" * 100_000, "nested too deeply"),
        (START + b'"X": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "nested too deeply"),
        (START + b'"X": ' + b"[" * 300 + b"]" * 300 + b"}", "X.0.0: is nested more than 20"),
        (START + b'"X": ' + b'{"a":' * 480 + b"1" + b"}" * 481, "X.a.a: is nested more than 20"),
        (START + b'"Metrics": true, "Metrics": false}', "Metrics: appears more than once"),
        (START + b'"LogLevel": "\\ud800"}', "LogLevel: has half a character"),
        (START + b'"\\udfff": 1}', "has half a character"),
        (START + b'"LogLevel": "\xe9"}', "is not UTF-8"),
        (json.dumps(SMALLEST).encode("utf-16"), "is not UTF-8"),
        (bytes(range(256)), "is not UTF-8"),
        (b"\x00\x01", "this is not JSON"),
        (b"", "it is empty"),
        (b"[]", "it must be an object"),
        (b"null", "it must be an object"),
    ],
)
def test_unreadable_contents(content: bytes, message: str, tmp_path: Path) -> None:
    """The error names the file and the mistake, in less than 1000 characters."""
    file = tmp_path / "imagemanager.json"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        Config.load(file, {})
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "it is empty"),
        (lambda path: path.symlink_to("/dev/zero"), "Not a regular file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (Path.mkdir, "directory"),
        (lambda path: path.write_bytes(b" " * (LARGEST + 1)), "More than 4 MiB"),
    ],
)
def test_unreadable_files(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    """An endless file, or a pipe without a writer, causes an error and does not block."""
    file = tmp_path / "imagemanager.json"
    make(file)
    with pytest.raises(ConfigurationError, match=message) as caught:
        Config.load(file, {})
    assert str(file) in str(caught.value)


def test_a_pipe(tmp_path: Path) -> None:
    """The output of a command is read to its end, as in `--config <(COMMAND)`."""
    file = tmp_path / "imagemanager.json"
    os.mkfifo(file)
    text = json.dumps(SMALLEST)
    script = "import sys, time\nwith open(sys.argv[1], 'w') as pipe:\n"
    script += f"    pipe.write({text[:50]!r}); pipe.flush(); time.sleep(0.2)\n"
    script += f"    pipe.write({text[50:]!r})\n"
    # The shell opens the pipe before Python begins, as with `<(COMMAND)`.
    keeper = os.open(file, os.O_RDWR)
    with subprocess.Popen([sys.executable, "-c", script, file]) as writer:
        loading = ThreadPoolExecutor(1).submit(Config.load, file, {})
        writer.wait(patient(60))
        os.close(keeper)
        assert loading.result(patient(60)).warnings == ()


def test_the_place_of_an_invalid_byte(tmp_path: Path) -> None:
    """The error about a file that is not UTF-8 names line, byte and remedy."""
    file = tmp_path / "imagemanager.json"
    file.write_bytes(b'{\n\n  "LogLevel": "\xe9"}')
    with pytest.raises(ConfigurationError, match="line 3: this is not UTF-8: byte 0xe9") as caught:
        Config.load(file, {})
    assert "Save the file in UTF-8" in caught.value.remedy


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    """A byte order mark at the start of the file, as some editors write it, is ignored."""
    file = tmp_path / "imagemanager.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(SMALLEST).encode())
    assert Config.load(file, {}).warnings == ()


def test_the_programs_print_the_error(tmp_path: Path) -> None:
    """The gateway and `shiftergw check` end with the error and without a traceback."""
    file = tmp_path / "imagemanager.json"
    file.write_bytes(START + b'"WorkerThreads": ' + b"9" * 5000 + b"}")
    check = shiftergw("check", "--config", str(file))
    twistd = Path(sys.executable).parent / "twistd"
    gateway = subprocess.run(
        [twistd, "--nodaemon", "--pidfile=", "shiftergw", "--config", file],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert (check.returncode, gateway.returncode) == (2, 1)
    for output in (check.stderr, gateway.stderr):
        assert "more than 4300 digits" in output
        assert "Traceback" not in output
