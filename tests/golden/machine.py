"""A program that runs a worker machine on a broker in memory.

`python -m tests.golden.machine MESSAGES DIRECTORY OUTPUT` receives the offers in the file MESSAGES,
and the order to stop the long job once that has begun. It writes the messages that it sends, and
the queues and exchanges that it declares, into the file OUTPUT. Jobs leave traces in DIRECTORY.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.golden import program, wire
from tests.patience import patient

WORKERS = Path(__file__).parents[1] / "work" / "workers.py"


def _wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + patient(15)
    while not condition():
        assert time.monotonic() < deadline, "the machine did not do it in time"
        time.sleep(0.02)


def _children() -> set[str]:
    """Return the identifiers of this process's children, whichever thread has started them."""
    pids: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread has ended
            pids.update((task / "children").read_text().split())
    return pids


def main(messages_file: str, directory: str, output_file: str) -> None:
    """Run the machine until all jobs have ended."""
    offers = json.loads(Path(messages_file).read_text(encoding="utf-8"))
    argv = [sys.executable, str(WORKERS), "group-polite", directory]
    app = program.worker_machine(wire.BROKER, argv)
    traces = Path(directory)

    def count_ended(messages: list[wire.Message]) -> int:
        states = [message["body"] for message in messages if message["exchange"] == "celeryev"]
        return len(states[-1]["ended"]) if states else 0

    def direct(messages: list[wire.Message]) -> None:
        try:
            wire.publish(offers["offer"], app)
            _wait(lambda: count_ended(messages) == 1)
            assert (traces / "short-1-done").exists()
            wire.publish(offers["offer of a job that dies"], app)
            _wait(lambda: count_ended(messages) == 2)
            wire.publish(offers["offer of a long job"], app)
            _wait((traces / "sleep-1").exists)
            before = _children()
            wire.publish(offers["cancel"], app)
            _wait(lambda: count_ended(messages) == 3)
            # The order to stop kills a process of the pool. The pool that Celery uses with a broker
            # in memory never ends if it is closed while it replaces one.
            _wait(lambda: _children() - before)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with wire.record_messages() as messages, wire.record_declarations() as declarations:
        threading.Thread(target=direct, args=(messages,), daemon=True).start()
        with suppress(SystemExit):
            app.worker_main(["worker", "-Q", wire.QUEUE, "-n", "celery@node1", "-l", "WARNING"])
        states = [message for message in messages if message["exchange"] == "celeryev"]
    assert count_ended(states) == len(wire.JOBS)
    document = {"messages": states, "declarations": declarations}
    Path(output_file).write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
