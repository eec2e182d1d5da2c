"""Credential helpers: real programs, well-behaved and faulty ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shiftergw.cli import credential_helpers
from shiftergw.cli.credential_helpers import HelperFailed, HelperLogin, ask_helper
from tests.cli.docker_files import helper_of, write_helper


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory in PATH."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def test_a_login_and_no_login(programs: Path) -> None:
    """A helper gets the server on standard input; a server without a login is no error."""
    write_helper(programs, "ring", helper_of({"https://reg.example/v1/": ("ann", 'h"ush')}))
    assert ask_helper("ring", "https://reg.example/v1/") == HelperLogin(b"ann", b'h"ush')
    assert ask_helper("ring", "reg.example") is None
    assert "ush" not in repr(ask_helper("ring", "https://reg.example/v1/"))


@pytest.mark.parametrize("name", ["", "../ring", "a b", "-x", "a;b", "a/b", "x" * 65, "a\n"])
def test_invalid_names(name: str) -> None:
    """A name that is more than a word is refused before anything is run."""
    with pytest.raises(HelperFailed, match="cannot be the name"):
        ask_helper(name, "reg.example")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo gpg: no key >&2; echo The keyring is locked.; exit 3", "ended with 3: The keyring"),
        ('echo \'{"Secret": "hush"}\'; exit 2', "ended with 2$"),
        ("echo hush", "is not that of a credential helper"),
        ("echo '[]'", "is not that of a credential helper"),
        ('echo \'{"Username": 1, "Secret": "hush"}\'', "is not that of a credential helper"),
        ('echo \'{"Username": "a", "Secret": "\\ud800"}\'', "is not that of a credential helper"),
        ("yes hush", "is longer than 65536 bytes"),
        ("printf '\\033]0;x\\007'; exit 1", r"ended with 1: \\x1b"),
    ],
)
def test_faulty_answers(programs: Path, script: str, words: str) -> None:
    """The error names the program and never quotes an answer that may hold a secret."""
    write_helper(programs, "ring", script)
    with pytest.raises(HelperFailed, match=words) as caught:
        ask_helper("ring", "reg.example")
    assert "hush" not in str(caught.value)
    assert "docker-credential-ring" in str(caught.value)


@pytest.mark.parametrize("script", ["exec sleep 60", "exec sleep 60 >&-", "sleep 60 & exit 0"])
def test_a_late_answer(programs: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A helper that hangs is ended, also if only a child of it holds the output open."""
    monkeypatch.setattr(credential_helpers, "TIME_LIMIT", 0.3)
    write_helper(programs, "ring", script.replace("sleep 60", "sleep 5"))
    with pytest.raises(HelperFailed, match="did not answer within"):
        ask_helper("ring", "reg.example")


def test_a_missing_program(programs: Path) -> None:
    """A helper that is not installed, or cannot be started, is named."""
    with pytest.raises(HelperFailed, match="docker-credential-ring is not installed"):
        ask_helper("ring", "reg.example")
    write_helper(programs, "ring", "")
    (programs / "docker-credential-ring").write_text("#!/nonexistent/sh\n")
    with pytest.raises(HelperFailed, match="cannot be started"):
        ask_helper("ring", "reg.example")


def test_a_helper_that_reads_nothing(programs: Path) -> None:
    """A helper may end without reading its input."""
    program = programs / "docker-credential-ring"
    program.write_text('#!/bin/sh\nexec echo \'{"Username": "ann", "Secret": "x"}\'\n')
    program.chmod(0o755)
    assert ask_helper("ring", "reg.example") == HelperLogin(b"ann", b"x")
