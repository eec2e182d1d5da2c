"""Where the command line starts: signals and broken pipes count from the first moment.

Nothing heavy is imported before that. A second signal, or a reader of the output that goes away,
must not end in a traceback, however early it comes.
"""

from __future__ import annotations

import os
import signal
import sys

from shiftergw.plumbing.signals import heeded, ignore, raise_interrupted

BROKEN_PIPE = 141
"""The exit code when nobody reads the output any more: as for programs that SIGPIPE ends."""


def main() -> None:
    """Run the command line and exit."""
    _open_missing_descriptors()
    raise_interrupted()
    stdout = sys.stdout
    try:
        # Importing takes long enough for a signal.
        from shiftergw.cli.main import main as command  # noqa: PLC0415

        command()
    except SystemExit:
        # Where nobody reads, click replaces the streams and exits with 1.
        if sys.stdout is not stdout:
            sys.exit(BROKEN_PIPE)
        raise
    except BrokenPipeError:
        drop_unwritten()
        sys.exit(BROKEN_PIPE)
    finally:
        # Everything is cleaned up; a signal must not raise anything into the interpreter's end.
        for number in heeded():
            signal.signal(number, ignore)


def _open_missing_descriptors() -> None:
    """Open `/dev/null` in place of standard streams that the caller has closed.

    Otherwise the first file or connection would get the number of one of them.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def drop_unwritten() -> None:
    """Give up what no reader has taken, so that it does not fail once more at the exit."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
