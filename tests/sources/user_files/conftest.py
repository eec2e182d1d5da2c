"""What the tests of user files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shiftergw.sources.user_files import public_files


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that everybody may enter, though those of pytest are private."""
    check = public_files._check_mode
    above = {path.stat().st_ino for path in tmp_path.parents}

    def check_below(descriptor: int, bits: int, *, regular: bool = False) -> None:
        if os.fstat(descriptor).st_ino not in above:
            check(descriptor, bits, regular=regular)

    monkeypatch.setattr(public_files, "_check_mode", check_below)
    tmp_path.chmod(0o755)
    return tmp_path
