"""The check of the audit log."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shiftergw.app.checkup.audit import audit_log
from shiftergw.app.checkup.finding import Level
from tests.configurations import load_config


def make_file(path: Path, mode: int) -> None:
    """Make a file with a mode."""
    path.touch()
    path.chmod(mode)


Preparation = Callable[[Path], object]

CASES: dict[str, tuple[Preparation, Level, str]] = {
    "absent": (lambda _: None, Level.OK, "will be made"),
    "private": (lambda path: make_file(path, 0o640), Level.OK, "audit.log"),
    "public": (lambda path: make_file(path, 0o644), Level.WARNING, "can read it"),
    "open to all": (lambda path: make_file(path, 0o642), Level.WARNING, "even change it"),
    "replaceable": (lambda path: path.parent.chmod(0o777), Level.WARNING, "can replace it"),
    "shared": (lambda path: path.parent.chmod(0o1777), Level.OK, "will be made"),
    "link": (lambda path: path.symlink_to("/dev/null"), Level.FAILURE, "a symbolic link"),
    "pipe": (os.mkfifo, Level.FAILURE, "not a regular file"),
    "no directory": (lambda path: path.parent.rmdir(), Level.FAILURE, "no such directory"),
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the path of an audit log; the modes of directories above it are not looked at."""
    monkeypatch.setattr(
        "shiftergw.app.checkup.audit.readable_by_all", lambda path: bool(path.stat().st_mode & 4)
    )
    (tmp_path / "log").mkdir()
    return tmp_path / "log" / "audit.log"


@pytest.mark.parametrize("name", CASES)
def test_files(path: Path, name: str) -> None:
    """A file that cannot be written fails the check, one that others read or change is named."""
    prepare, level, text = CASES[name]
    prepare(path)
    (finding,) = audit_log(load_config({"AuditLog": str(path)}).config)
    assert (finding.name, finding.level) == ("AuditLog", level)
    assert text in finding.text
    assert bool(finding.remedy) is (level is not Level.OK)


@pytest.mark.parametrize("exists", [False, True])
def test_no_right_to_write(path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    """The user of the check may not write to the file, or to its directory if it is absent."""
    if exists:
        make_file(path, 0o640)
    monkeypatch.setattr(os, "access", lambda *_: False)
    (finding,) = audit_log(load_config({"AuditLog": str(path)}).config)
    assert finding.level is Level.FAILURE
    assert finding.text == f"{path if exists else path.parent}: you may not write to it"


def test_no_audit_log() -> None:
    """Without the key there is nothing to check."""
    assert list(audit_log(load_config({}).config)) == []
