"""The copy of standard input: private, bounded, and gone at each end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shiftergw.cli import input_spool
from shiftergw.cli.exits import Misuse
from shiftergw.cli.input_spool import InputSpool

CONTENT = os.urandom(1 << 20) + b"end"


def test_no_terminal_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` on a terminal is a mistake: the command would wait for the user's typing."""

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(Misuse, match="Standard input is a terminal"):
        InputSpool()


@pytest.fixture
def stdin_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have `CONTENT` as standard input, and yield an empty directory for temporary files."""
    (tmp_path / "input").write_bytes(CONTENT)
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    with (tmp_path / "input").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        yield directory


def test_the_copy_of_standard_input_is_private(stdin_file: Path) -> None:
    """The copy is in `TMPDIR`, without a name, so that no signal leaves anything of it behind."""
    spool = InputSpool()
    while spool.copy_piece(len(CONTENT)):
        assert list(stdin_file.iterdir()) == []
    state = os.fstat(spool._file.fileno())
    assert (state.st_dev, state.st_nlink) == (stdin_file.stat().st_dev, 0)
    assert (state.st_mode & 0o777, state.st_size) == (0o600, len(CONTENT))
    spool.close()


@pytest.mark.usefixtures("stdin_file")
def test_standard_input_does_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy ends while other programs have room for their temporary files."""
    monkeypatch.setattr(input_spool, "free_space", lambda _: 64 << 20)
    spool = InputSpool()
    with pytest.raises(Misuse, match="No space left on device"):
        spool.copy_piece()
    spool.close()
