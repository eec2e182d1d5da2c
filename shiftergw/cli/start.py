"""The entry point of the command line, which handles signals and broken pipes from the start.

Nothing that takes long to load is imported before that. A second signal, or a reader of the output
that goes away, must not end in a traceback, however early it comes.
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
"""The exit code when the output has no reader any more, as of programs that SIGPIPE ends."""

OUTPUT_FAILED = 1
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
        # If the output has no reader, click replaces the streams and exits with 1.
        if sys.stdout is not stdout:
            sys.exit(BROKEN_PIPE)
        raise
    except OSError as error:
        sys.exit(code_of_output_error(error))
    finally:
        # Everything is cleaned up. While the interpreter ends, our handlers would be gone, and a
        # signal would raise an exception or change the exit code.
        for number in handled_signals():
            signal.signal(number, signal.SIG_IGN)


def _open_missing_descriptors() -> None:
    """Open `/dev/null` in place of standard streams that the caller has closed.

    Otherwise the first file or connection would get the descriptor of a standard stream, and
    Python's `sys.stdin`, `sys.stdout` or `sys.stderr` would be None.
    """
    for descriptor, (name, mode) in enumerate(_STREAMS.items()):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - stays


def _print_any_text() -> None:
    """Escape characters that the encoding of the output does not have, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def code_of_output_error(error: OSError) -> int:
    """Return the exit code for an error of writing the output, and print the error if possible.

    Raises the error again if it has another cause.
    """
    if not isinstance(error, BrokenPipeError) and error.errno not in _UNWRITABLE:
        raise error
    drop_output()
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    with suppress(OSError):
        sys.stderr.write(f"Error: the output cannot be written: {error.strerror}.\n")
    return OUTPUT_FAILED


def drop_output() -> None:
    """Drop output that is still buffered, so that writing it does not fail again at the exit."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
