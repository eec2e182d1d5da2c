"""The entry point of the command line, which handles signals and broken pipes from the start.

Nothing that takes long to load is imported before that. A second signal, or a reader of the output
that goes away, must not end in a traceback, however early it comes.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import site
import sys
from contextlib import suppress
from importlib import import_module
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


_IMPORTER = (
    "import sys; from shiftergw.cli.start import importer_main;"
    " sys.argv[0] = 'shiftergw-pyxis'; importer_main()"
)
"""The Python code of `shiftergw-pyxis`."""


def main() -> None:
    """Run the command line and exit."""
    _run("shiftergw.cli.main", "main")


def importer_main() -> None:
    """Run the command line of `shiftergw-pyxis` and exit."""
    _restart_isolated()
    _run("shiftergw.cli.importer", "importer")


def _restart_isolated() -> None:
    """Start the program again without the libraries of its user, unless it is among them.

    The program that pyxis runs has the environment of a job. PYTHONPATH, or the user's own
    `site-packages`, may have other versions of what the program needs.
    """
    places = {*os.environ.get("PYTHONPATH", "").split(os.pathsep), site.getusersitepackages()}
    has_places = bool(os.environ.get("PYTHONPATH")) or bool(site.ENABLE_USER_SITE)
    if has_places and not sys.flags.isolated and str(Path(__file__).parents[2]) not in places:
        os.execv(sys.executable, [sys.executable, "-I", "-c", _IMPORTER, *sys.argv[1:]])  # noqa: S606 - itself


def _run(module: str, name: str) -> None:
    """Run the command `name` of a module and exit."""
    _open_missing_descriptors()
    _print_any_text()
    raise_interrupted()
    stdout = sys.stdout
    try:
        # Importing takes long enough for a signal.
        command = getattr(import_module(module), name)
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
