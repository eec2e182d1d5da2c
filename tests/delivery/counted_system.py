"""A remote system that has a part of the image to be delivered; sent bytes are counted."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from twisted.logger import LogEvent, capturedLogs, formatEvent

from shiftergw.delivery.hosts import Hosts
from shiftergw.delivery.remote import RemoteDirectory, RemoteOptions
from shiftergw.delivery.scp_files import ScpFiles
from shiftergw.delivery.sftp_files import SftpFiles
from shiftergw.model.records import Progress
from shiftergw.plumbing.channel import Channel
from shiftergw.plumbing.threads import Threads
from shiftergw.ports import DeltaSource, SharedRange, Verification
from shiftergw.ssh.openssh import OpenSsh
from tests.delivery.contract import CONTENT, IMAGE, ignore, names
from tests.delivery.delta_contract import NEXT_IMAGE, write_converted
from tests.delivery.far import FIRST_PAUSE, IDLE_SECONDS, UNUSED_ACCOUNT, connection, without_ssh
from tests.installed_reactor import reactor

NEW_BYTES = os.urandom(1_500_000)
NEXT_CONTENT = (
    NEW_BYTES[:96] + CONTENT[96:5_000_000] + NEW_BYTES[96:] + CONTENT[3_000_000:] + b"metadata"
)
SHA256 = hashlib.sha256(NEXT_CONTENT).hexdigest()
DELTA = DeltaSource(
    IMAGE,
    len(CONTENT),
    (SharedRange(96, 96, 4_999_904), SharedRange(6_499_904, 3_000_000, 7_000_000)),
)
SHARED_BYTES = sum(shared_range.length for shared_range in DELTA.ranges)
SENT_BYTES = len(NEXT_CONTENT) - SHARED_BYTES
PART = f"{NEXT_IMAGE}.partial.{SHA256[:16]}"


class CountingChannel:
    """A channel that counts the bytes of its input."""

    def __init__(self, channel: Channel, counter: CountingConnection) -> None:
        """Pass everything on."""
        self._channel = channel
        self._counter = counter

    def write(self, data: Any) -> None:
        """Count and pass on."""
        self._counter.sent_bytes += len(data)
        self._channel.write(data)

    def writeSequence(self, data: Sequence[Any]) -> None:
        """Count and pass on."""
        self._counter.sent_bytes += sum(map(len, data))
        self._channel.writeSequence(data)

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the channel."""
        return getattr(self._channel, name)


class CountingConnection:
    """A connection that counts the bytes that are sent, commands included."""

    def __init__(self, inner: OpenSsh) -> None:
        """Pass everything on."""
        self._inner = inner
        self.sent_bytes = 0

    async def open_subsystem(self, name: str) -> Any:
        """Return a channel that counts."""
        return CountingChannel(await self._inner.open_subsystem(name), self)

    async def open_command(self, argv: Sequence[str]) -> Any:
        """Return a channel that counts."""
        self.sent_bytes += sum(map(len, argv))
        return CountingChannel(await self._inner.open_command(argv), self)

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the connection."""
        return getattr(self._inner, name)


class FarSystem:
    """A system with one installed image, and a converted file that shares ranges with it."""

    def __init__(self, root: Path, tmp_path: Path, threads: Threads) -> None:
        """Install the image."""
        self.root = root
        self._tmp_path = tmp_path
        self._threads = threads
        (root / IMAGE).write_bytes(CONTENT)
        self.source, _ = write_converted(tmp_path / "next", NEXT_CONTENT)
        self.connections: list[CountingConnection] = []
        self.directories: list[RemoteDirectory] = []
        self.reports: list[Progress] = []
        self.events: Sequence[LogEvent] = ()
        self.pids = tmp_path / "pids"

    def environment(
        self, way: str, programs: Mapping[str, str] = {}, *, commands: bool = True
    ) -> Mapping[str, str]:
        """Return an environment whose `ssh` runs these scripts instead of the system's programs."""
        programs_directory = self._tmp_path / "far"
        programs_directory.mkdir()
        for name, script in programs.items():
            (programs_directory / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs_directory / name).chmod(0o755)
        return without_ssh(
            self._tmp_path / "bin",
            before=f"PATH={programs_directory}:$PATH; echo $$ >> {self.pids}",
            options="-P copy-data" if way == "commands" else "",
            commands=commands,
        )

    def open(self, way: str, env: Mapping[str, str], **options: Any) -> RemoteDirectory:
        """Return the image directory of the system."""

        async def connect() -> Any:
            self.connections.append(CountingConnection(connection(UNUSED_ACCOUNT, env)))
            return self.connections[-1]

        begin = ScpFiles.begin if way == "scp" else SftpFiles.begin
        self.directories.append(
            RemoteDirectory(
                Hosts({"far": connect}, reactor),
                PurePosixPath(self.root),
                self._threads,
                reactor,
                RemoteOptions(
                    idle_seconds=IDLE_SECONDS,
                    open_files=begin,
                    first_pause=FIRST_PAUSE,
                    **options,
                ),
            )
        )
        return self.directories[-1]

    async def deliver(
        self,
        directory: RemoteDirectory,
        delta: DeltaSource = DELTA,
        report: Callable[[Progress], None] = ignore,
    ) -> Verification:
        """Deliver the converted file, and check that it arrives."""

        def note(progress: Progress) -> None:
            self.reports.append(progress)
            report(progress)

        with capturedLogs() as self.events:
            verification = await directory.install(self.source, NEXT_IMAGE, SHA256, note, delta)
        assert (self.root / NEXT_IMAGE).read_bytes() == NEXT_CONTENT
        assert (self.root / NEXT_IMAGE).stat().st_mode & 0o7777 == 0o600
        assert names(self.root) == sorted([IMAGE, NEXT_IMAGE])
        return verification

    def kill(self) -> None:
        """Kill the servers and programs that run on the system."""
        for pid in self.pids.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.pids.write_text("")

    @property
    def sent_bytes(self) -> int:
        """Return how many bytes were sent."""
        return sum(connection.sent_bytes for connection in self.connections)

    def log(self, level: str) -> list[str]:
        """Return the log lines about what was sent."""
        lines = [formatEvent(event) for event in self.events if event["log_level"].name == level]
        return [line for line in lines if line.startswith(NEXT_IMAGE)]
