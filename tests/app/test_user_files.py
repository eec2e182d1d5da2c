"""The parts of the gateway for files of users, as `compose` wires them."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from shiftergw.app import user_files as wiring
from shiftergw.errors import Unavailable
from shiftergw.model.requests import Session
from shiftergw.model.uploads import UploadDeclaration
from shiftergw.plumbing.timing import within
from shiftergw.service import upload_space
from shiftergw.sources.user_files import public_files
from tests.configurations import load_config
from tests.patience import patient


@pytest_twisted.ensureDeferred
async def test_imports_that_hang_stop_no_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import from a file system without its server is an error; uploads go on."""
    end = Event()

    def hang(_: str) -> int:
        end.wait()
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(public_files, "open_public_file", hang)
    monkeypatch.setattr(wiring, "IMPORT_CHECK_SECONDS", 0.1)
    monkeypatch.setattr(upload_space, "DISK_RESERVE", 0)
    config = load_config({"UploadDirectory": str(tmp_path / "uploads")}).config
    preparation: Any = SimpleNamespace(seal=None)
    store: Any = None
    files, (threads, spool, _) = wiring.user_files(reactor, config, store, preparation)
    threads.startService()
    await spool.startService()

    async def check_hung_file() -> None:
        await files.check_file("/hung/image.squashfs", "alice")

    try:
        checks = [Deferred.fromCoroutine(check_hung_file()) for _ in range(50)]
        for check in checks:
            with pytest.raises(Unavailable, match="does not answer"):
                await within(patient(20), reactor, check, AssertionError)
        session = Session("mycluster", "bob", 2002, "users", 2100)
        declaration = UploadDeclaration("mycluster", 2002, 10, "ab" * 32)
        declaring = files.uploads.declare(session, declaration)
        upload = await within(patient(20), reactor, declaring, AssertionError)
        assert upload.offset == 0
    finally:
        end.set()
        await threads.stopService()
