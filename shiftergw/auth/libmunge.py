"""Use munge(7) through libmunge, or through its programs where the library is missing.

Both return the same: a status of `munge_err_t` (munge.h), which is also the exit code of the
program `unmunge`, the numeric ids of the user who made the credential, and its payload. libmunge
also returns ids and payload of credentials that are expired, rewound or replayed. Calls block; if
the daemon hangs, libmunge gives up after some 10 s.
"""

from __future__ import annotations

import ctypes
import functools
import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from shiftergw.errors import ChildFailed
from shiftergw.model.names import HIGHEST_ID

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM_LIMIT = 15.0
"""Seconds that `munge` and `unmunge` may take; normally they give up earlier by themselves."""

LARGEST = 1 << 20
"""Bytes of the longest message to a daemon (MUNGE_MAXIMUM_REQ_LEN)."""

_KEYS = "UID,GID,ENCODE_TIME,DECODE_TIME"
_LIBRARY = "libmunge.so.2"
_OPT_ENCODE_TIME, _OPT_DECODE_TIME, _OPT_SOCKET = 6, 7, 8
_OUTPUT = re.compile(
    rb"(?:ENCODE_TIME:[^\n]*\(([0-9]{1,18})\)\nDECODE_TIME:[^\n]*\(([0-9]{1,18})\)\n)?"
    rb"UID:[ \t]+[^\n]*\(([0-9]{1,10})\)\nGID:[ \t]+[^\n]*\(([0-9]{1,10})\)\n\n(.*)",
    re.DOTALL,
)
"""The output of `unmunge` for these keys: lines of the form `KEY: name (number)`, where a name may
hold blanks and parentheses but no line break, a blank line, and the payload unchanged."""


class Status(IntEnum):
    """`munge_err_t` of munge.h."""

    SUCCESS = 0
    SNAFU = 1
    BAD_ARGUMENT = 2
    BAD_LENGTH = 3
    OVERFLOW = 4
    NO_MEMORY = 5
    SOCKET = 6
    TIMEOUT = 7
    BAD_CREDENTIAL = 8
    BAD_VERSION = 9
    BAD_CIPHER = 10
    BAD_MAC = 11
    BAD_ZIP = 12
    BAD_REALM = 13
    INVALID = 14
    EXPIRED = 15
    REWOUND = 16
    REPLAYED = 17
    UNAUTHORIZED = 18


TROUBLE = frozenset(
    {Status.SNAFU, Status.NO_MEMORY, Status.OVERFLOW, Status.SOCKET, Status.TIMEOUT}
)
"""Statuses for which the daemon or this program is at fault, not the credential."""


@dataclass(frozen=True, slots=True)
class DecodeAnswer:
    """A daemon's answer about a credential; ids and payload count only with `SUCCESS`.

    `uid` and `gid` are -1 if the credential could not be read at all. `made_at` is the time when
    the credential was made, in seconds since 1970 by the clock of the daemon that made it. `age` is
    the time from then to the decoding in seconds, each by the clock of its daemon: negative for a
    credential of the future. Both are None if the credential could not be read. `trouble` is for
    the log: why the daemon could not be used.
    """

    status: Status
    uid: int = -1
    gid: int = -1
    payload: bytes = field(default=b"", repr=False)
    made_at: float | None = None
    age: float | None = None
    trouble: str = ""


class Munge(Protocol):
    """Makes and reads credentials; blocking. Without a `socket` munge's default is used."""

    def encode(self, payload: bytes, socket: Path | None) -> tuple[Status, str]:
        """Return a status and a credential of the calling user, with the daemon's defaults."""
        ...

    def decode(self, credential: bytes, socket: Path | None) -> DecodeAnswer:
        """Return the daemon's answer about a credential, which ends at its first NUL."""
        ...


class Library:
    """libmunge through ctypes; each call has its own context, so threads share nothing."""

    def __init__(self) -> None:
        """Load the library; raise `OSError` if it is missing."""
        # Calls that do not block keep Python's lock: to take it again may mean a wait.
        munge: Any = ctypes.PyDLL(_LIBRARY)
        blocking: Any = ctypes.CDLL(_LIBRARY)
        munge.munge_ctx_create.restype = ctypes.c_void_p
        munge.munge_ctx_destroy.argtypes = [ctypes.c_void_p]
        munge.munge_ctx_destroy.restype = None
        # Variadic: the fixed arguments are declared; the further ones are passed as ctypes values.
        munge.munge_ctx_set.argtypes = [ctypes.c_void_p, ctypes.c_int]
        munge.munge_ctx_get.argtypes = [ctypes.c_void_p, ctypes.c_int]
        blocking.munge_encode.argtypes = [
            ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int,
        ]  # fmt: skip
        blocking.munge_decode.argtypes = [
            ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p),
            ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_uint32),
            ctypes.POINTER(ctypes.c_uint32),
        ]  # fmt: skip
        libc: Any = ctypes.PyDLL(None)
        libc.free.argtypes = [ctypes.c_void_p]
        libc.free.restype = None
        self._munge = munge
        self._blocking = blocking
        self._free = libc.free

    def encode(self, payload: bytes, socket: Path | None) -> tuple[Status, str]:
        """Return a status and a credential, as `Munge` says."""
        credential = ctypes.c_void_p()
        context = self._context(socket)
        try:
            status = self._blocking.munge_encode(
                ctypes.byref(credential), context, payload, len(payload)
            )
            text = ctypes.string_at(credential.value).decode() if credential.value else ""
        finally:
            self._munge.munge_ctx_destroy(context)
            self._free(credential)
        return _status(status), text

    def decode(self, credential: bytes, socket: Path | None) -> DecodeAnswer:
        """Return the daemon's answer, as `Munge` says."""
        payload, length = ctypes.c_void_p(), ctypes.c_int()
        # munge.h: (uid_t) -1 unless the credential could be read.
        uid, gid = ctypes.c_uint32(HIGHEST_ID + 1), ctypes.c_uint32(HIGHEST_ID + 1)
        context = self._context(socket)
        try:
            status = self._blocking.munge_decode(
                credential,
                context,
                ctypes.byref(payload),
                ctypes.byref(length),
                ctypes.byref(uid),
                ctypes.byref(gid),
            )
            content = ctypes.string_at(payload.value, length.value) if payload.value else b""
            made_at, read_at = (
                self._time(context, option) for option in (_OPT_ENCODE_TIME, _OPT_DECODE_TIME)
            )
        finally:
            self._munge.munge_ctx_destroy(context)
            self._free(payload)
        return DecodeAnswer(
            _status(status), _id(uid.value), _id(gid.value), content, *_times(made_at, read_at)
        )

    def _time(self, context: ctypes.c_void_p, option: int) -> int:
        """Return a time of the credential that was decoded last; 0 or -1 if it has none."""
        time = ctypes.c_long(0)  # time_t
        self._munge.munge_ctx_get(context, option, ctypes.byref(time))
        return time.value

    def _context(self, socket: Path | None) -> ctypes.c_void_p:
        context = ctypes.c_void_p(self._munge.munge_ctx_create())
        if not context.value:
            raise MemoryError
        if socket is not None:
            self._munge.munge_ctx_set(context, _OPT_SOCKET, ctypes.c_char_p(bytes(socket)))
        return context


class Programs:
    """The programs `munge` and `unmunge`; secrets are passed through their standard input."""

    def encode(self, payload: bytes, socket: Path | None) -> tuple[Status, str]:
        """Return a status and a credential; raise `ChildFailed` if the program is missing."""
        if len(payload) > LARGEST:  # the program does not report it
            return Status.BAD_LENGTH, ""
        code, output = _run(["munge", *_socket(socket)], payload)
        return _status(code), output.decode("ascii", "replace").strip()

    def decode(self, credential: bytes, socket: Path | None) -> DecodeAnswer:
        """Return the daemon's answer; raise `ChildFailed` if the program is missing."""
        if len(credential) > LARGEST:
            return DecodeAnswer(Status.BAD_LENGTH)
        argv = ["unmunge", f"--keys={_KEYS}", *_socket(socket)]
        code, output = _run(argv, credential.partition(b"\0")[0])
        match = _OUTPUT.fullmatch(output)
        if match is None:
            # A success whose output cannot be read must not count as a success.
            return DecodeAnswer(_status(code) or Status.SNAFU)
        times = _times(int(match[1] or 0), int(match[2] or 0))
        return DecodeAnswer(_status(code), _id(int(match[3])), _id(int(match[4])), match[5], *times)


def _socket(socket: Path | None) -> list[str]:
    return [] if socket is None else [f"--socket={socket}"]


def _run(argv: list[str], content: bytes) -> tuple[int, bytes]:
    """Return exit code and output of a program; raise `ChildFailed` if it is missing."""
    import subprocess  # noqa: PLC0415 - loading it takes a while, and libmunge needs none

    problem = ""
    try:
        process = subprocess.run(
            argv, input=content, capture_output=True, timeout=PROGRAM_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return Status.TIMEOUT, b""
    except OSError as error:
        problem = error.strerror or "no such program"
    else:
        return process.returncode, process.stdout
    raise ChildFailed(
        f"{argv[0]} cannot be started: {problem}.", exit_code=None, signal=None, stderr=""
    )


def _status(code: int) -> Status:
    return Status(code) if code in Status._value2member_map_ else Status.SNAFU


def _times(made_at: int, read_at: int) -> tuple[float | None, float | None]:
    """Return the time when a credential was made, and its age; None if it could not be read."""
    if made_at <= 0 or read_at <= 0:
        return None, None
    return float(made_at), float(read_at - made_at)


def _id(value: int) -> int:
    """Return a uid or gid; -1 for (uid_t) -1, which no user has."""
    return -1 if value > HIGHEST_ID else value


@functools.cache
def find_munge() -> Munge:
    """Return libmunge, or the programs where the library is missing."""
    try:
        return Library()
    except OSError:
        return Programs()
