"""Run Docker's credential helpers: programs that keep logins in a keyring.

The protocol is that of docker-credential-helpers: `docker-credential-NAME get` reads a server's
name on standard input and prints a JSON object on standard output. Everything here blocks.
"""

from __future__ import annotations

import json
import re
import select
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import IO

from shiftergw.errors import printable

TIME_LIMIT = 120.0
"""Seconds for one answer: a keyring may ask the user for its password first."""

ANSWER_LIMIT = 64 * 1024
"""Bytes of the longest answer."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MISSING = b"credentials not found"
"""What a helper prints if it has no login; its exit code is 1 then."""

_QUOTE_LIMIT = 200
_PIECE = 4096


class HelperFailed(Exception):
    """A credential helper has not answered as one does; the text says why."""


@dataclass(frozen=True, slots=True)
class HelperLogin:
    """The login that a helper has for a server."""

    user: bytes
    secret: bytes = field(repr=False)


def ask_helper(name: str, server: str) -> HelperLogin | None:
    """Return the login that `docker-credential-NAME` has for a server; None if it has none.

    Raises `HelperFailed` for an invalid name, a missing program, an error, and an answer that is
    late, too long or invalid.
    """
    if not _NAME.fullmatch(name):
        raise HelperFailed(f"{printable(name, 60)!r} cannot be the name of a credential helper")
    program = f"docker-credential-{name}"
    path = shutil.which(program)
    if path is None:
        raise HelperFailed(f"{program} is not installed here, or not in PATH")
    try:
        code, output = _run([str(Path(path).absolute()), "get"], f"{server}\n".encode())
    except TimeoutError as error:
        raise HelperFailed(f"{program} did not answer within {TIME_LIMIT:.0f} s") from error
    except OSError as error:
        raise HelperFailed(f"{program} cannot be started: {error.strerror}") from error
    if len(output) > ANSWER_LIMIT:
        raise HelperFailed(f"the answer of {program} is longer than {ANSWER_LIMIT} bytes")
    if code:
        if _MISSING in output:
            return None
        raise HelperFailed(f"{program} ended with {code}{_words_of(output)}")
    return _parse(program, output)


def _parse(program: str, output: bytes) -> HelperLogin | None:
    """Return the login in an answer; the answer is never quoted, since it has a password."""
    with suppress(ValueError, RecursionError):
        answer = json.loads(output)
        if isinstance(answer, dict):
            user, secret = answer.get("Username", ""), answer.get("Secret", "")
            if isinstance(user, str) and isinstance(secret, str):
                return HelperLogin(user.encode(), secret.encode()) if secret else None
    raise HelperFailed(f"the answer of {program} is not that of a credential helper")


def _words_of(output: bytes) -> str:
    """Return the first line of an error as `: LINE`; "" if there is none, or it may be a login."""
    line = output.decode("utf-8", "replace").strip().partition("\n")[0]
    return f": {printable(line, _QUOTE_LIMIT)}" if line and "{" not in line else ""


def _run(argv: list[str], request: bytes) -> tuple[int, bytes]:
    """Run a program; return its exit code and the first `ANSWER_LIMIT` + 1 bytes of its output.

    Raises `TimeoutError` after `TIME_LIMIT`. The program keeps the terminal and the environment:
    keyrings need both to ask for a password.
    """
    deadline = monotonic() + TIME_LIMIT
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # The request is shorter than a pipe's buffer, so this does not block.
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(request)
        output = _read(process.stdout, deadline)
        if len(output) > ANSWER_LIMIT:
            return 0, output
        try:
            return process.wait(max(0.0, deadline - monotonic())), output
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _read(stream: IO[bytes], deadline: float) -> bytes:
    """Read a stream to its end, or a little beyond `ANSWER_LIMIT`; raise `TimeoutError`."""
    output = b""
    while len(output) <= ANSWER_LIMIT:
        if not select.select([stream], [], [], max(0.0, deadline - monotonic()))[0]:
            raise TimeoutError
        piece = stream.read(_PIECE)
        if not piece:
            break
        output += piece
    return output
