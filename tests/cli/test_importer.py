"""shiftergw-pyxis: as a process against a gateway, and its parts."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from shiftergw.cli.exits import Misuse, NoGateway, RequestRefused, Stop
from shiftergw.cli.importer import ready_id, wait_until_readable
from shiftergw.errors import NotFound
from shiftergw.model.records import ImageRecord
from shiftergw.states import State
from tests.cli.command import ENVIRONMENT, IMPORTER, gateway_for, run
from tests.web.fakes import IMAGE_ID, READY, FakeGateway

SQUASHFS = b"hsqs and the rest"
WORKING = ImageRecord(system="mycluster", status=State.PULLING, stage="fetch", done=1, total=4)
FAILURE = ImageRecord(
    system="mycluster", status=State.FAILURE, cause="No such tag.", remedy="Check the tag."
)
UPLOAD = replace(READY, itype="custom", tags=("app:1",))

# As a process.


@asynccontextmanager
async def node_of(fake: FakeGateway, directory: Path) -> AsyncIterator[Mapping[str, str]]:
    """Serve a fake gateway; the value is the environment of a job on a node of its system."""
    images = directory / "images"
    images.mkdir()
    (images / f"{IMAGE_ID}.squashfs").write_bytes(SQUASHFS)
    conf = directory / "client.conf"
    async with gateway_for(fake) as env:
        conf.write_text(
            f"imageGateway = {env['SHIFTERGW_GATEWAY']}\nsystem = {env['SHIFTERGW_SYSTEM']}\n"
            f"imagePath = {images}\n"
        )
        yield {
            "SHIFTERGW_CLIENT_CONF": str(conf),
            "SHIFTERGW_CREDENTIAL": env["SHIFTERGW_CREDENTIAL"],
            # Of the terminal in which the job was submitted.
            "SHIFTERGW_GATEWAY": "http://127.0.0.1:1",
            "SHIFTERGW_SYSTEM": "elsewhere",
        }


async def ask(
    fake: FakeGateway, directory: Path, *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the program on a node of a fake gateway."""
    async with node_of(fake, directory) as env:
        done: subprocess.CompletedProcess[bytes] = await deferToThread(
            run, *arguments, env=env, program="shiftergw-pyxis"
        )
    return done


@pytest_twisted.ensureDeferred
async def test_get_prints_the_path_alone(tmp_path: Path) -> None:
    """The path is all of the output; the job's own gateway and system do not count."""
    fake = FakeGateway(pulls=[WORKING, READY])
    done = await ask(fake, tmp_path, "get", "docker://ann@ghcr.io#a/b:1")
    path = tmp_path / "images" / f"{IMAGE_ID}.squashfs"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n".encode(), b"")
    assert [call[2:4] for call in fake.calls if call[0] == "pull"] == [
        ("docker", "ghcr.io/a/b:1"),
        ("docker", "ghcr.io/a/b:1"),
    ]


@pytest_twisted.ensureDeferred
async def test_an_upload_is_looked_up(tmp_path: Path) -> None:
    """An image of the user's own is in no registry: it is there, or it is not."""
    fake = FakeGateway(images=[UPLOAD])
    done = await ask(fake, tmp_path, "get", "docker://custom:app:1")
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 1)
    assert "pull" not in {call[0] for call in fake.calls}


@pytest_twisted.ensureDeferred
async def test_a_pull_that_fails(tmp_path: Path) -> None:
    """Cause and remedy are on standard error, and nothing is on standard output."""
    done = await ask(FakeGateway(pulls=[FAILURE]), tmp_path, "get", "docker://x:1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == "Error: No such tag.\nCheck the tag.\n"


@pytest_twisted.ensureDeferred
async def test_a_refusal(tmp_path: Path) -> None:
    """The refusal of a gateway has the exit code that it has for `shiftergw`."""
    fake = FakeGateway(raises=NotFound("There is no registry x."))
    done = await ask(fake, tmp_path, "get", "docker://x:1")
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"There is no registry x." in done.stderr


@pytest_twisted.ensureDeferred
async def test_a_hostile_name_reaches_no_gateway(tmp_path: Path) -> None:
    """A text that is no name of an image is refused here."""
    fake = FakeGateway()
    done = await ask(fake, tmp_path, "get", "docker://$(reboot)")
    assert (done.returncode, done.stdout, fake.calls) == (2, b"", [])


def test_a_node_without_settings(tmp_path: Path) -> None:
    """A node without `client.conf` names the file."""
    path = str(tmp_path / "client.conf")
    done = run("get", "docker://x", env={"SHIFTERGW_CLIENT_CONF": path}, program="shiftergw-pyxis")
    assert (done.returncode, done.stdout) == (2, b"")
    assert path in done.stderr.decode()


def test_release_does_nothing_and_needs_nothing() -> None:
    """`release` succeeds any number of times, on a node without settings, too."""
    for _ in range(2):
        done = run("release", program="shiftergw-pyxis")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_libraries_of_the_job_do_not_count(tmp_path: Path) -> None:
    """The job's PYTHONPATH may lead to other versions of the program's libraries."""
    (tmp_path / "click.py").write_text("raise SystemExit('a library of the job')")
    done = subprocess.run(
        [*IMPORTER, "release"],
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# Without a process.


class SlowRemote:
    """A gateway that works for a long time, or is silent."""

    def __init__(self, error: Exception | None = None) -> None:
        """Answer, or raise an error."""
        self.polls = 0
        self._error = error

    async def pull(self, *_: object) -> dict[str, Any]:
        """Return a record of work."""
        if self._error is not None:
            raise self._error
        return {"status": "PULLING"}

    async def poll(self, *_: object) -> dict[str, Any]:
        """Return a record of work, and count."""
        self.polls += 1
        return {"status": "PULLING"}


def advance(clock: Clock, seconds: int) -> None:
    """Let time pass in small steps."""
    clock.pump([0.25] * (4 * seconds))


def test_many_nodes_poll_seldom() -> None:
    """The polls of a long pull become rare, since each node of a large job sends them."""
    clock, remote = Clock(), SlowRemote()
    waiting: Any = Deferred.fromCoroutine(ready_id(remote, clock, ("docker", "x:1")))  # type: ignore[arg-type]
    advance(clock, 3)
    assert remote.polls >= 3
    advance(clock, 597)
    assert remote.polls < 100
    waiting.addErrback(lambda _: None)
    waiting.cancel()


def test_silent_gateways_end_it() -> None:
    """The gateways may be silent for a minute, as during a restart."""
    clock, remote = Clock(), SlowRemote(NoGateway("silent"))
    waiting: Any = Deferred.fromCoroutine(ready_id(remote, clock, ("docker", "x:1")))  # type: ignore[arg-type]
    errors: list[Any] = []
    waiting.addErrback(errors.append)
    advance(clock, 50)
    assert not errors
    advance(clock, 20)
    (error,) = errors
    assert error.check(NoGateway)


def test_a_file_that_appears_late(tmp_path: Path) -> None:
    """A node may not see for a while what was just delivered."""
    path = tmp_path / "image.squashfs"
    timer = Timer(0.05, path.write_bytes, [SQUASHFS])
    timer.start()
    wait_until_readable(path, time.monotonic() + 60, 0.02)
    timer.join()


def test_files_that_are_never_there(tmp_path: Path) -> None:
    """The error names the file, and the key that may be wrong."""
    path = tmp_path / "image.squashfs"
    with pytest.raises(Misuse, match=rf"no file {path}.*imagePath"):
        wait_until_readable(path, time.monotonic())


def test_files_that_the_user_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is about the key of the gateway's configuration that opens images to users."""

    def refuse(*_: object) -> int:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(RequestRefused, match="FileMode"):
        wait_until_readable(tmp_path / "image.squashfs", time.monotonic() + 60)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Another kind of file, or a directory, is not passed to enroot."""
    path = tmp_path / "image.squashfs"
    path.write_bytes(b"#!/bin/sh")
    with pytest.raises(Stop, match="Not a squashfs file"):
        wait_until_readable(path, time.monotonic() + 60)
    with pytest.raises(Stop, match="cannot be read"):
        wait_until_readable(tmp_path, time.monotonic() + 60)
