"""Run a worker process: `python -m shiftergw.runner --config FILE`.

It reads JSON lines from standard input, `{"record": KEY}` for each record to work on. It writes
`{"ready": true}` once, and `{"done": KEY}` after each record; the store has the outcome. At the end
of input it stops after the current record, so a worker whose gateway was killed finishes its
record.

With `--with-metrics` it also writes `{"metrics": [...]}` before each `done`, and now and then
during a job: the sums of its measurements since its start.

`{"late": KEY}` fails the current record because it has taken too long. `{"debug": true}` or `false`
switches debug messages.

With `--with-caller` the end of input stops the current record, as SIGTERM does. So no job on a
worker machine goes on after the process that started it was killed. If the clean-up of the record
hangs, this process requeues the record and kills itself, because no other process would do either.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from shiftergw.app.log import LogOptions, start_worker_logging
from shiftergw.app.metric_counts import MetricCounts
from shiftergw.app.metric_reports import MetricReports
from shiftergw.app.reactor import run_main
from shiftergw.app.worker import worker_service
from shiftergw.config import Config
from shiftergw.errors import GatewayError
from shiftergw.plumbing.exhaustion import EXHAUSTED_CODE, Exhausted
from shiftergw.plumbing.memory import release_free_memory, share_heap
from shiftergw.plumbing.reactor import with_threads
from shiftergw.plumbing.signals import ignore
from shiftergw.work.worker_protocol import KILL_SECONDS

if TYPE_CHECKING:
    from shiftergw.plumbing.reactor import Reactor

CLEANUP_SECONDS = KILL_SECONDS / 2
"""Seconds that the clean-up of a record may take after the calling process was killed."""

_log = Logger()


class Jobs(LineOnlyReceiver):
    """Reads the keys of records from standard input, and writes answers."""

    delimiter = b"\n"

    def __init__(
        self,
        on_end: Callable[[], object],
        time_out: Callable[[str], object],
        set_debug: Callable[[bool], object],
    ) -> None:
        """Call `on_end` at the end of input, and `time_out` with the key of a late record.

        Call `set_debug` with whether debug messages are to be logged.
        """
        self.keys: DeferredQueue[str | None] = DeferredQueue()
        self._on_end = on_end
        self._time_out = time_out
        self._set_debug = set_debug

    def lineReceived(self, line: bytes) -> None:
        """Take the key of a record; log an invalid line, which is a fault of the gateway."""
        try:
            message = json.loads(line)
            if "late" in message:
                self._time_out(message["late"])
            elif "debug" in message:
                self._set_debug(message["debug"] is True)
            else:
                self.keys.put(message["record"])
        except (ValueError, TypeError, KeyError):
            _log.error("not a job: {line!r}", line=line[:200])

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """End the work at the end of input."""
        self.keys.put(None)
        self._on_end()

    def answer(self, message: dict[str, Any]) -> None:
        """Write one line."""
        self.sendLine(json.dumps(message).encode())


async def work(
    reactor: Reactor,
    config: Config,
    log_options: LogOptions,
    with_caller: bool = False,
    with_metrics: bool = False,
) -> int:
    """Work on records until the input ends; return the exit code. Lines of the log name the record.

    With `with_caller`, the end of input stops the record; with `with_metrics`, it is measured.
    """
    counts = MetricCounts()
    services, make_worker = worker_service(reactor, config, counts)
    try:
        await services.startService()
    except GatewayError as error:
        _log.critical("worker cannot start: {error}", error=error)
        return 1
    running: list[Deferred[None]] = []

    def stop_without_caller() -> None:
        if with_caller and running:
            _log.warn("the process that began this job is gone: the job stops")
            _kill_soon()
            running[0].cancel()
            reactor.callLater(CLEANUP_SECONDS, begin_to_abandon)

    def begin_to_abandon() -> None:
        abandoning = Deferred.fromCoroutine(abandon())
        abandoning.addErrback(lambda failure: _log.failure("the record is not requeued", failure))

    async def abandon() -> None:
        if await worker.abandon():
            _kill()

    try:
        worker = make_worker()
        log_options.context = worker.trace
        # A process group of its own, so that a kill of this process includes `mksquashfs`.
        os.setpgrp()
        jobs = Jobs(stop_without_caller, worker.time_out, log_options.switch_debug)
        StandardIO(jobs, reactor=reactor)
        jobs.answer({"ready": True})
        reports = MetricReports(counts, jobs.answer if with_metrics else _drop, reactor)
        while (key := await jobs.keys.get()) is not None:
            running.append(Deferred.fromCoroutine(worker.run(key)))
            try:
                with reports:
                    await running[0]
            except GatewayError as error:
                _log.error("record {key}: {error}", key=key, error=error)
            except Exhausted as error:
                _log.critical("record {key}: this worker ends: {error}", key=key, error=error)
                return EXHAUSTED_CODE
            running.clear()
            release_free_memory()
            jobs.answer({"done": key})
    finally:
        await services.stopService()
    return 0


def _drop(_: object) -> None:
    """Do nothing: a gateway that was started before an update does not know such lines."""


def _kill_soon() -> None:
    """Kill this process and its children after `KILL_SECONDS`, even if its reactor hangs."""
    killer = threading.Timer(KILL_SECONDS, _kill)
    killer.daemon = True
    killer.start()


def _kill() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Read the command line and work; exit with the exit code."""
    parser = argparse.ArgumentParser(prog="shiftergw.runner")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--with-caller", action="store_true")
    parser.add_argument("--with-metrics", action="store_true")
    arguments = parser.parse_args()
    try:
        loaded_config = Config.load(arguments.config, os.environ)
    except GatewayError as error:
        sys.exit(f"worker cannot start: {error}")
    share_heap()  # before any thread starts
    config = loaded_config.config
    log_options = LogOptions(config.log_level, config.log_format, "worker")
    start_worker_logging(log_options)
    # A signal that is meant for the gateway may reach all its processes.
    signal.signal(signal.SIGUSR2, ignore)

    flags = arguments.with_caller, arguments.with_metrics

    async def command(reactor: Reactor) -> int:
        if arguments.with_caller:  # no gateway tells this process what the signal means
            log_options.handle_signal(with_threads(reactor).callFromThread)
        return await work(reactor, config, log_options, *flags)

    sys.exit(run_main(command))
