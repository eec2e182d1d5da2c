"""Fork programs from a process that has imported their modules; see `tests.forks`.

Importing the program takes half a second of processor time, several times what a gateway needs for
the work of a test. Each fork is a process of its own, with its own arguments, environment,
directory and streams, and it runs the code that its program runs. It begins without a reactor,
since importing the reactor would install it for all forks. A gateway that is a fork has a server of
its own for its workers.

`python -m tests.fork_server KIND DESCRIPTOR` serves the socket with this number until its other end
is closed. A message is a JSON object with `program`, `arguments`, `env`, `cwd` and `session` (for a
session of its own). Four descriptors come with it: the three standard streams, and a pipe to which
the server writes two lines, the process id and the exit code (negative for a signal, as
`subprocess` has it). With `orphan` it writes the first only, see `tests.adoption`. With `terminal`
the standard error is the controlling terminal.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import selectors
import socket
import sys
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tests.adoption import fork_orphan

MODULES = {
    "database": ["secantus.cli"],
    "gateway": [
        "shiftergw.app.tap",
        "shiftergw.app.convert",
        "shiftergw.app.explain",
        "shiftergw.app.explainer",
        "shiftergw.app.runner",
        "shiftergw.app.trust",
        "shiftergw.cli.convert",
        "shiftergw.cli.exchange_twisted",
        "shiftergw.cli.importer",
        "shiftergw.cli.main",
        "shiftergw.cli.start",
        "shiftergw.cli.upload",
        "twisted.internet.epollreactor",
        "twisted.scripts.twistd",
        "twisted.web.client",
    ],
    "machine": [
        "celery.apps.worker",
        "celery.bin.celery",
        "celery.concurrency.prefork",
        "celery.events.state",
        "celery.worker.consumer",
        "kombu.transport.pyamqp",
        "shiftergw.config",
        "shiftergw.work.celery.worker",
    ],
    "store": ["pymongo", "shiftergw.store.sqlite.store"],
    "worker": ["shiftergw.app.runner", "tests.end_to_end.doomed_worker"],
}
"""The modules that each kind of program imports: `store` is for processes that use one at once."""

MESSAGE_BYTES = 200_000
STREAMS = 3
END_OF_DESCRIPTORS = 1 << 16


def run_gateway() -> None:
    """Run the script `twistd`, and a server of forks for its workers beside it."""
    from twisted.scripts.twistd import run  # noqa: PLC0415 - only a fork runs it

    from tests.worker_forks import fork_workers  # noqa: PLC0415 - as above

    requests, served_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        requests.close()
        program = ForkServer(served_end).serve()
        if program is None:
            os._exit(0)
        program()
        return
    served_end.close()
    fork_workers(requests, WORKERS)
    sys.exit(run())


def run_gateway_worker() -> None:
    """Run `python -m shiftergw.runner`."""
    from shiftergw.app.runner import main  # noqa: PLC0415 - only a fork runs it
    from tests.worker_forks import name_process  # noqa: PLC0415 - as above

    name_process("python", "-m", "shiftergw.runner")
    main()


def run_explainer() -> None:
    """Run `python -m shiftergw.app.explainer`."""
    from shiftergw.app.explainer import main  # noqa: PLC0415 - only a fork runs it

    main()


def run_command() -> None:
    """Run the script `shiftergw`."""
    from shiftergw.cli.start import main  # noqa: PLC0415 - only a fork runs it

    main()


def run_importer() -> None:
    """Run the script `shiftergw-pyxis`."""
    from shiftergw.cli.start import importer_main  # noqa: PLC0415 - only a fork runs it

    importer_main()


def run_machine() -> None:
    """Run the script `celery`."""
    from celery.__main__ import main  # noqa: PLC0415 - only a fork runs it

    main()


def run_database() -> None:
    """Run the script `secantusd-py`."""
    from secantus.cli import main  # noqa: PLC0415 - only a fork runs it

    sys.exit(main())


def run_hammer() -> None:
    """Run `python -m tests.store.hammer`."""
    from tests.store.hammer import run  # noqa: PLC0415 - only a fork runs it

    run(*sys.argv[1:])


def run_worker() -> None:
    """Run a worker that is killed at a certain point."""
    from tests.end_to_end.doomed_worker import main  # noqa: PLC0415 - only a fork runs it

    main()


WORKERS: dict[str, Callable[[], None]] = {
    "shiftergw.app.explainer": run_explainer,
    "shiftergw.runner": run_gateway_worker,
}
"""The modules that a gateway executes."""

PROGRAMS: dict[str, Callable[[], None]] = {
    **WORKERS,
    "twistd": run_gateway,
    "shiftergw": run_command,
    "shiftergw-pyxis": run_importer,
    "celery": run_machine,
    "doomed worker": run_worker,
    "hammer": run_hammer,
    "secantusd-py": run_database,
}


class ForkServer:
    """Forks on demand, and reports the ends of the forks."""

    def __init__(self, requests: socket.socket) -> None:
        """Serve the requests that arrive at a socket."""
        self._requests = requests
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)

    def serve(self) -> Callable[[], None] | None:
        """Serve until the socket is closed and return None; in a fork, return what it must run."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._requests:
                    self._report_end(key.fd, *key.data)
                    continue
                message, descriptors, _, _ = socket.recv_fds(
                    self._requests, MESSAGE_BYTES, STREAMS + 1, socket.MSG_CMSG_CLOEXEC
                )
                if not message:
                    return None
                if program := self._fork(json.loads(message), descriptors):
                    return program

    def _fork(
        self, request: dict[str, Any], descriptors: Sequence[int]
    ) -> Callable[[], None] | None:
        """Fork; return None in this process, and the program in the fork."""
        *streams, report = descriptors
        is_orphan = request.get("orphan", False)
        pid = fork_orphan() if is_orphan else os.fork()
        if pid:
            for stream in streams:
                os.close(stream)
            os.write(report, b"%d\n" % pid)
            if is_orphan:
                os.close(report)
                return None
            end = os.pidfd_open(pid)
            self._selector.register(end, selectors.EVENT_READ, (pid, report))
            return None
        self._selector.close()
        self._requests.close()
        return prepare(request, streams)

    def _report_end(self, end: int, pid: int, report: int) -> None:
        self._selector.unregister(end)
        os.close(end)
        _, status = os.waitpid(pid, 0)
        with suppress(BrokenPipeError):  # nobody waits for it
            os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(report)


def prepare(request: dict[str, Any], streams: Sequence[int]) -> Callable[[], None]:
    """Make this process as the request describes it; return its program."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(STREAMS, END_OF_DESCRIPTORS)
    open_streams()
    if request["session"]:
        os.setsid()
    if request.get("terminal"):
        fcntl.ioctl(STREAMS - 1, termios.TIOCSCTTY, 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.argv = [request["program"], *request["arguments"]]
    sys.modules["__main__"].__package__ = None  # messages name the program instead of this module
    return PROGRAMS[request["program"]]


def open_streams() -> None:
    """Replace Python's standard streams, which know whether the server's streams can seek."""
    for number, (name, mode, buffering) in enumerate(
        (("stdin", "r", -1), ("stdout", "w", -1), ("stderr", "w", 1))
    ):
        stream = getattr(sys, name)
        new_stream = open(  # noqa: SIM115 - it stays open, and a number is no path
            number,
            mode,
            buffering,
            encoding=stream.encoding,
            errors=stream.errors,
            closefd=False,
        )
        setattr(sys, name, new_stream)
        setattr(sys, f"__{name}__", new_stream)


def preload(kind: str) -> None:
    """Import the modules of a kind and the plugins of Twisted, without a reactor."""
    for module in MODULES[kind]:
        importlib.import_module(module)
    if kind == "gateway":
        plugins = importlib.import_module("twisted.plugin")
        service = importlib.import_module("twisted.application.service")
        list(plugins.getPlugins(service.IServiceMaker))
    assert "twisted.internet.reactor" not in sys.modules
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    preload(sys.argv[1])
    program = ForkServer(socket.socket(fileno=int(sys.argv[2]))).serve()
    if program is not None:
        program()
