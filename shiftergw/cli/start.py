"""Where the command line starts: signals and broken pipes count from the first moment.

Nothing heavy is imported before that. A second signal, or a reader of the output that goes away,
must not end in a traceback, however early it comes.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from shiftergw.plumbing.signals import handled_signals, raise_interrupted

BROKEN_PIPE = 141
"""The exit code when nobody reads the output any more: as for programs that SIGPIPE ends."""

UNWRITTEN = 1
"""The exit code when the output goes to a file and its disk is full."""

_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}
"""The standard streams, in the order of their descriptors, and how to open them."""

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main() -> None:
    """Run the command line and exit."""
    _open_missing_descriptors()
    _print_any_text()
    raise_interrupted()
    stdout = sys.stdout
    try:
        # Importing takes long enough for a signal.
        from shiftergw.cli.main import main as command  # noqa: PLC0415

        gc.freeze()  # the exit does not search modules for garbage: it takes a third of the time
        command()
    except SystemExit:
        # Where nobody reads, click replaces the streams and exits with 1.
        if sys.stdout is not stdout:
            sys.exit(BROKEN_PIPE)
        raise
    except OSError as error:
        sys.exit(code_of_unwritten(error))
    finally:
        # Everything is cleaned up; a signal must not raise anything into the interpreter's end.
        # Handlers of ours would be gone there, and a second signal would change the exit code.
        for number in handled_signals():
            signal.signal(number, signal.SIG_IGN)


def _open_missing_descriptors() -> None:
    """Open `/dev/null` in place of standard streams that the caller has closed.

    Otherwise the first file or connection would get the number of one of them, and Python's own
    `sys.stdin` and its like are None.
    """
    for descriptor, (name, mode) in enumerate(_STREAMS.items()):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - stays


def _print_any_text() -> None:
    """Escape characters that the encoding of the output lacks, instead of failing at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def code_of_unwritten(error: OSError) -> int:
    """Return the exit code for output that cannot be written, and say why where that can be read.

    Raises the error again if it is about something else.
    """
    if not isinstance(error, BrokenPipeError) and error.errno not in _UNWRITABLE:
        raise error
    drop_unwritten()
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    with suppress(OSError):
        sys.stderr.write(f"Error: the output cannot be written: {error.strerror}.\n")
    return UNWRITTEN


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
