"""A worker process whose caller was killed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from shiftergw.app.runner import Jobs
from tests import children
from tests.patience import patient

PROGRAM = """
import sys
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, succeed
from shiftergw.app import runner
from shiftergw.app.reactor import run_main

kind = sys.argv[1]

class Services(MultiService):
    def startService(self):
        return succeed(None)

class Worker:
    def trace(self):
        return {}

    def time_out(self, key):
        pass

    async def run(self, key):
        sys.stderr.write("begun\\n")
        sys.stderr.flush()
        while kind != "working":
            try:
                await Deferred()
            except CancelledError:
                if kind == "quick":
                    raise

    async def abandon(self):
        sys.stderr.write("abandoned\\n")
        sys.stderr.flush()
        if kind == "away":
            await Deferred()
        return True

runner.worker_service = lambda reactor, config, metrics: (Services(), Worker)
runner.release_free_memory = lambda: sys.stderr.write("released\\n")
runner.CLEANUP_SECONDS, runner.KILL_SECONDS = 0.1, 1.0 if kind == "away" else 1000.0
options = runner.LogOptions()
sys.exit(run_main(lambda reactor: runner.work(reactor, None, options, with_caller=True)))
"""


@pytest.mark.parametrize(
    ("kind", "words"),
    [("hanging", b"abandoned"), ("away", b"abandoned"), ("quick", b"")],
)
def test_a_job_whose_caller_is_killed(kind: str, words: bytes) -> None:
    """If its clean-up hangs, the record is requeued before the process is killed.

    The store may hang.
    """
    process = children.start(
        [sys.executable, "-c", PROGRAM, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == b'{"ready": true}\n'
        process.stdin.write(b'{"record": "1"}\n')
        process.stdin.flush()
        assert process.stderr.readline() == b"begun\n"
        _, output = process.communicate(timeout=patient(20))
    finally:
        process.kill()
    assert words in output
    assert (b"abandoned" in output) is (words != b"")
    assert (process.returncode == -signal.SIGKILL) is (kind != "quick")


def test_orders_of_the_gateway() -> None:
    """The gateway orders work, its end, and debug messages; another line is logged as a fault."""
    late: list[str] = []
    debug: list[bool] = []
    jobs = Jobs(lambda: None, late.append, debug.append)
    for line in (b'{"record": "k"}', b'{"late": "k"}', b'{"debug": true}', b'{"debug": 0}', b"[]"):
        jobs.lineReceived(line)
    assert (jobs.keys.pending, late, debug) == (["k"], ["k"], [True, False])


def test_memory_is_released_after_each_record() -> None:
    """What a job has freed goes back to the system before the worker waits for the next one."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "working"],
        input=b'{"record": "1"}\n{"record": "2"}\n',
        capture_output=True,
        timeout=patient(60),
        check=False,
    )
    assert done.stderr.split() == [b"begun", b"released"] * 2
    ends = [line for line in done.stdout.splitlines() if b"done" in line]
    assert ends == [b'{"done": "1"}', b'{"done": "2"}']
