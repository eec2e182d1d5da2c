"""What a worker process runs: `python -m shiftergw.runner --config FILE`.

On standard input come JSON lines, one record at a time: `{"record": KEY}`. On standard output go
`{"ready": true}` once, and `{"done": KEY}` after each record, however it ended: how it ended is in
the store. The end of input means: stop after the current record. So a worker whose gateway was
killed finishes what it has begun, and ends.

`{"late": KEY}` means that the current record has taken too long: it ends as a failure.

With `--with-caller` the end of input means: stop the current record, as by SIGTERM. So no job on a
worker machine goes on when what has begun it there was killed. A record whose clean-up hangs is
requeued, and the process kills itself: nobody else would, or would tell the store.
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
from typing import Any

from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from shiftergw.app.log import start_worker_logging
from shiftergw.app.reactor import run_main
from shiftergw.app.worker import worker_service
from shiftergw.config import Config
from shiftergw.errors import GatewayError
from shiftergw.plumbing.exhaustion import EXHAUSTED_CODE, Exhausted
from shiftergw.work.worker_protocol import KILL_SECONDS

CLEANUP_SECONDS = KILL_SECONDS / 2
"""Seconds that a record's clean-up may take after its caller was killed."""

_log = Logger()


class Jobs(LineOnlyReceiver):
    """The records that come in on standard input."""

    delimiter = b"\n"

    def __init__(self, ended: Callable[[], object], late: Callable[[str], object]) -> None:
        """Wait for the first line; call `ended` at the end of input, `late` with a key."""
        self.keys: DeferredQueue[str | None] = DeferredQueue()
        self._ended = ended
        self._late = late

    def lineReceived(self, line: bytes) -> None:
        """Take a record's key; a line that is none is the gateway's fault, and is logged."""
        try:
            told = json.loads(line)
            if "late" in told:
                self._late(told["late"])
            else:
                self.keys.put(told["record"])
        except (ValueError, TypeError, KeyError):
            _log.error("not a job: {line!r}", line=line[:200])

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """Take the end of input for the end of work."""
        self.keys.put(None)
        self._ended()

    def tell(self, answer: dict[str, Any]) -> None:
        """Write one line."""
        self.sendLine(json.dumps(answer).encode())


async def work(reactor: Any, config: Config, with_caller: bool = False) -> int:
    """Run records until the input ends; return the exit code.

    `with_caller`: the end of input stops a record that is in work.
    """
    services, make_worker = worker_service(reactor, config)
    try:
        await services.startService()
    except GatewayError as error:
        _log.critical("worker cannot start: {error}", error=error)
        return 1
    running: list[Deferred[None]] = []

    def caller_left() -> None:
        if with_caller and running:
            _log.warn("whoever began this job is gone: it stops")
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
        # A group of our own: whoever kills this process takes `mksquashfs` with it.
        os.setpgrp()
        jobs = Jobs(caller_left, worker.time_out)
        StandardIO(jobs, reactor=reactor)
        jobs.tell({"ready": True})
        while (key := await jobs.keys.get()) is not None:
            running.append(Deferred.fromCoroutine(worker.run(key)))
            try:
                await running[0]
            except GatewayError as error:
                _log.error("record {key}: {error}", key=key, error=error)
            except Exhausted as error:
                _log.critical("record {key}: this worker ends: {error}", key=key, error=error)
                return EXHAUSTED_CODE
            running.clear()
            jobs.tell({"done": key})
    finally:
        await services.stopService()
    return 0


def _kill_soon() -> None:
    """Kill this process and its children later, also if its reactor hangs by then."""
    killer = threading.Timer(KILL_SECONDS, _kill)
    killer.daemon = True
    killer.start()


def _kill() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="shiftergw.runner")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--with-caller", action="store_true")
    arguments = parser.parse_args()
    try:
        loaded = Config.load(arguments.config, os.environ)
    except GatewayError as error:
        sys.exit(f"worker cannot start: {error}")
    start_worker_logging(loaded.config.log_level)
    sys.exit(run_main(lambda reactor: work(reactor, loaded.config, arguments.with_caller)))
