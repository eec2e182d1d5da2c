"""What a worker process runs: `python -m shiftergw.runner --config FILE`.

On standard input come JSON lines, one record at a time: `{"record": KEY}`. On standard output go
`{"ready": true}` once, and `{"done": KEY}` after each record, however it ended: how it ended is in
the store. The end of input means: stop after the current record. So a worker whose gateway was
killed finishes what it has begun, and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import DeferredQueue
from twisted.internet.protocol import connectionDone
from twisted.internet.stdio import StandardIO
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from shiftergw import compose
from shiftergw.config import Config
from shiftergw.errors import GatewayError
from shiftergw.log import start_worker_logging

_log = Logger()


class Jobs(LineOnlyReceiver):
    """The records that come in on standard input."""

    delimiter = b"\n"

    def __init__(self) -> None:
        """Wait for the first line."""
        self.keys: DeferredQueue[str | None] = DeferredQueue()

    def lineReceived(self, line: bytes) -> None:
        """Take a record's key; a line that is none is the gateway's fault, and is logged."""
        try:
            key = json.loads(line)["record"]
        except (ValueError, TypeError, KeyError):
            _log.error("not a job: {line!r}", line=line[:200])
            return
        self.keys.put(key)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """Take the end of input for the end of work."""
        self.keys.put(None)

    def tell(self, answer: dict[str, Any]) -> None:
        """Write one line."""
        self.sendLine(json.dumps(answer).encode())


async def work(reactor: Any, config: Config) -> int:
    """Run records until the input ends; return the exit code."""
    services, make_worker = compose.worker(reactor, config)
    try:
        await services.startService()
    except GatewayError as error:
        _log.critical("worker cannot start: {error}", error=error)
        return 1
    try:
        worker = make_worker()
        # A group of our own: whoever kills this process takes `mksquashfs` with it.
        os.setpgrp()
        jobs = Jobs()
        StandardIO(jobs, reactor=reactor)
        jobs.tell({"ready": True})
        while (key := await jobs.keys.get()) is not None:
            try:
                await worker.run(key)
            except GatewayError as error:
                _log.error("record {key}: {error}", key=key, error=error)
            jobs.tell({"done": key})
    finally:
        await services.stopService()
    return 0


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="shiftergw.runner")
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    loaded = Config.load(arguments.config, os.environ)
    start_worker_logging(loaded.config.log_level)
    sys.exit(compose.run_main(lambda reactor: work(reactor, loaded.config)))


if __name__ == "__main__":
    main()
