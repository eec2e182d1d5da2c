"""Pulls to systems that hang occupy no worker and succeed after the outage."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from shiftergw.delivery.hosts import Connect
from shiftergw.delivery.outage import BreakerWaits, GuardedDirectory, MonitoredSystem, SystemBreaker
from shiftergw.errors import RetryLater
from shiftergw.model.records import ImageRecord, Progress
from shiftergw.plumbing.channel import Connection, SystemUnavailable
from shiftergw.plumbing.timing import pause
from shiftergw.ports import BreakerStore, Verification
from shiftergw.sftp.outgoing_file import REACH
from shiftergw.sources.registry.shared_breakers import NoBreakers
from shiftergw.states import State
from tests.delivery.contract import IMAGE, names
from tests.delivery.far import sftp_server
from tests.delivery.ssh_systems import System
from tests.installed_reactor import reactor
from tests.job.workbench import SISTER, Bench, running_bench
from tests.matrices import combinations
from tests.patience import patient, stretch
from tests.sshd import Sshd

WHY = "the system sister (its host does not answer)"
SIZE = 24 << 20


@dataclass
class Hung:
    """A system that hangs until `mend` is called."""

    connector: Connect
    mend: Callable[[], None]


def suspended_server(stack: ExitStack, system: System, sshd: Sshd, _: int) -> Hung:
    """Return a system whose SSH server is stopped by SIGSTOP; the kernel accepts connections."""
    stop = ExitStack()
    stop.enter_context(sshd.suspension())
    stack.callback(stop.close)
    return Hung(system.connector(sshd), stop.close)


def mute_server(_: ExitStack, system: System, sshd: Sshd, black_hole: int) -> Hung:
    """Return a system with a port that never sends a byte, and later with the SSH server."""
    connectors = [system.connector(sshd, port=black_hole), system.connector(sshd)]

    async def connect() -> Connection:
        return await connectors[0]()

    return Hung(connect, connectors.reverse)


def closed_port(_: ExitStack, system: System, sshd: Sshd, __: int) -> Hung:
    """Return a system whose SSH server is not running."""
    sshd.stop()
    return Hung(system.connector(sshd), sshd.start)


def swallowing_server(stack: ExitStack, system: System, sshd: Sshd, _: int) -> Hung:
    """Return a system that accepts the login and then never answers."""
    script = sshd.root / "session"
    script.write_text("#!/bin/sh\nexec cat > /dev/null\n")
    script.chmod(0o755)
    host = stack.enter_context(Sshd(f"ForceCommand {script}"))
    connector = system.connector(host, connect_seconds=patient(20))

    def mend() -> None:
        script.write_text(f"#!/bin/sh\nexec {sftp_server()}\n")

    return Hung(connector, mend)


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """Run a host."""
    with Sshd() as running:
        yield running


def guarded_directory(
    system: System, connector: Connect, root: Path, breakers: BreakerStore, **options: Any
) -> GuardedDirectory:
    """Return the directory of a system with one host, with short limits."""
    directory = system.directory([connector], root, idle_seconds=stretch(1), **options)
    waits = BreakerWaits(first=stretch(1), longest=stretch(1), probe=0.5)
    symptom = "its host does not answer"
    monitored_system = MonitoredSystem("sister", "far", "here", symptom)
    breaker = SystemBreaker(monitored_system, breakers, reactor, waits=waits)
    return GuardedDirectory(directory, breaker)


async def run_to_the_end(bench: Bench, key: str) -> ImageRecord:
    """Run a postponed pull whenever its time is over, until it ends; return its record."""
    deadline = reactor.seconds() + patient(60)
    while reactor.seconds() < deadline:
        await bench.worker.run(key)
        record = await bench.store.get(key)
        if record is None:  # merged into the READY record
            record = await bench.store.find(SISTER, "docker", ["lib/app:2"])
            assert record is not None
        if record.status is not State.PENDING:
            return record
        await pause(0.1, reactor)
    raise AssertionError(f"still waiting: {record}")


@pytest.mark.parametrize(
    ("hang", "system"),
    combinations(
        [suspended_server, mute_server, closed_port, swallowing_server], ["conch", "openssh"]
    ),
    indirect=["system"],
)
@pytest_twisted.ensureDeferred
async def test_a_pull_waits_for_its_system(
    system: System,
    sshd: Sshd,
    root: Path,
    tmp_path: Path,
    black_hole: int,
    hang: Callable[[ExitStack, System, Sshd, int], Hung],
) -> None:
    """The pull is postponed with a reason, other pulls run, and it ends READY later."""
    bench_root = tmp_path / "bench"
    bench_root.mkdir()
    with ExitStack() as stack:
        hung = hang(stack, system, sshd, black_hole)
        async with running_bench(bench_root) as bench:
            directory = guarded_directory(system, hung.connector, root, bench.store)
            target = bench.targets[SISTER]
            bench.targets[SISTER] = replace(
                target, name="far", directory=directory, systems=(SISTER,)
            )
            pulls = []
            for tag in ("lib/app:1", "lib/app:2"):
                bench.source.requests.clear()
                pulls.append(await bench.pull(tag, system=SISTER))
            for pull in pulls:
                assert (pull.status, pull.waits_for) == (State.PENDING, WHY)
                assert (pull.status_message or "").startswith("Waits until ")
                assert (pull.runner, pull.last_heartbeat) == (None, None)
            assert bench.source.requests == [], "the second pull looks at the breaker alone"
            assert (await bench.pull("lib/app:1")).status is State.READY
            assert bench.builder.builds == 1
            hung.mend()
            for pull in pulls:
                assert (await run_to_the_end(bench, pull.key)).status is State.READY
    assert len(names(root)) == 2


@pytest_twisted.ensureDeferred
async def test_an_outage_that_begins_during_the_conversion(
    system: System, sshd: Sshd, root: Path, tmp_path: Path
) -> None:
    """The breaker, opened by another pull, is checked again before the delivery."""
    bench_root = tmp_path / "bench"
    bench_root.mkdir()
    async with running_bench(bench_root) as bench:
        directory = guarded_directory(system, system.connector(sshd), root, bench.store)
        target = bench.targets[SISTER]
        bench.targets[SISTER] = replace(target, name="far", directory=directory, systems=(SISTER,))

        async def trip() -> None:
            await directory._breaker.trip(SystemUnavailable("The system does not answer."))

        async def install(*_: object) -> Verification:
            raise AssertionError("a system that is known to be away was tried")

        bench.builder.on_build = trip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(directory, "install", install)
            pull = await bench.pull("lib/app:1", system=SISTER)
        assert (pull.status, pull.waits_for) == (State.PENDING, WHY)
        bench.builder.on_build = None
        assert (await run_to_the_end(bench, pull.key)).status is State.READY


@pytest_twisted.ensureDeferred
async def test_the_next_attempt_resumes_the_part(
    system: System, sshd: Sshd, root: Path, tmp_path: Path
) -> None:
    """A system that hangs during a delivery keeps the part, and later gets the rest."""
    source = tmp_path / "large"
    content = random.Random(SIZE).randbytes(SIZE)
    source.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    directory = guarded_directory(system, system.connector(sshd), root, NoBreakers())
    stop = ExitStack()

    def hang(progress: Progress) -> None:
        if progress.done >= SIZE // 2:
            stop.enter_context(sshd.suspension())

    with stop, pytest.raises(RetryLater) as caught:
        await directory.install(source, IMAGE, sha256, hang)
    assert caught.value.why == WHY
    assert names(root) == [f"{IMAGE}.partial.{sha256[:16]}"]
    reports: list[Progress] = []
    await directory.install(source, IMAGE, sha256, reports.append)
    assert reports[0].done >= SIZE // 2 - REACH
    assert (root / IMAGE).read_bytes() == content
