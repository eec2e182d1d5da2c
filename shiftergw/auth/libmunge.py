"""munge(7) through libmunge, or through its programs where the library is missing.

Both ways say the same: a status of `munge_err_t` (munge.h), which is also the exit code of the
program `unmunge`, the numeric ids of whoever made the credential, and its payload. libmunge hands
ids and payload out for credentials that are expired, rewound or replayed, too. Calls block; with a
daemon that hangs libmunge gives up by itself after some 10 s.
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from shiftergw.errors import ChildFailed
from shiftergw.names import HIGHEST_ID

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM_LIMIT = 15.0
"""Seconds that `munge` and `unmunge` may take; they give up by themselves before."""

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
"""What `unmunge` prints for these keys: `name (number)` on each line, where a name may hold blanks
and parentheses but no end of line, a blank line, and the payload as it is."""


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


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a daemon said of a credential; ids and payload count for `SUCCESS` alone.

    `uid` and `gid` are -1 where the credential could not be read at all. `age` is the time in
    seconds between the making and the reading, each by the clock of the daemon that did it;
    negative for a credential of the future, None where the credential could not be read.
    `made_at` is the former of the two, in seconds since 1970. `trouble` is for the log: why the
    daemon could not be used.
    """

    status: Status
    uid: int = -1
    gid: int = -1
    payload: bytes = field(default=b"", repr=False)
    made_at: float | None = None
    age: float | None = None
    trouble: str = ""


class Munge(Protocol):
    """Makes and reads credentials; blocking."""

    def encode(self, payload: bytes, socket: Path | None) -> tuple[Status, str]:
        """Return the credential, with the daemon's own defaults; without a socket the usual one."""
        ...

    def decode(self, credential: bytes, socket: Path | None) -> Decoded:
        """Return what the daemon says of a credential; a NUL ends it."""
        ...


class Library:
    """libmunge by ctypes; a context of its own for each call, so that threads share nothing."""

    def __init__(self) -> None:
        """Load it; raise `OSError` where it is missing."""
        # What does not block keeps Python's lock: taking it again may mean a wait.
        munge: Any = ctypes.PyDLL(_LIBRARY)
        asking: Any = ctypes.CDLL(_LIBRARY)
        munge.munge_ctx_create.restype = ctypes.c_void_p
        munge.munge_ctx_destroy.argtypes = [ctypes.c_void_p]
        munge.munge_ctx_destroy.restype = None
        # Variadic: the fixed arguments are declared, and the others given as ctypes values.
        munge.munge_ctx_set.argtypes = [ctypes.c_void_p, ctypes.c_int]
        munge.munge_ctx_get.argtypes = [ctypes.c_void_p, ctypes.c_int]
        asking.munge_encode.argtypes = [
            ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int,
        ]  # fmt: skip
        asking.munge_decode.argtypes = [
            ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p),
            ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_uint32),
            ctypes.POINTER(ctypes.c_uint32),
        ]  # fmt: skip
        libc: Any = ctypes.PyDLL(None)
        libc.free.argtypes = [ctypes.c_void_p]
        libc.free.restype = None
        self._munge = munge
        self._asking = asking
        self._free = libc.free

    def encode(self, payload: bytes, socket: Path | None) -> tuple[Status, str]:
        """Return a credential, as `Munge` says."""
        made = ctypes.c_void_p()
        context = self._context(socket)
        try:
            status = self._asking.munge_encode(ctypes.byref(made), context, payload, len(payload))
            text = ctypes.string_at(made.value).decode("ascii") if made.value else ""
        finally:
            self._munge.munge_ctx_destroy(context)
            self._free(made)
        return _status(status), text

    def decode(self, credential: bytes, socket: Path | None) -> Decoded:
        """Return what the daemon says, as `Munge` says."""
        payload, length = ctypes.c_void_p(), ctypes.c_int()
        # munge.h: (uid_t) -1 unless the credential could be read.
        uid, gid = ctypes.c_uint32(HIGHEST_ID + 1), ctypes.c_uint32(HIGHEST_ID + 1)
        context = self._context(socket)
        try:
            status = self._asking.munge_decode(
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
        return Decoded(
            _status(status), _id(uid.value), _id(gid.value), content, *_times(made_at, read_at)
        )

    def _time(self, context: ctypes.c_void_p, option: int) -> int:
        """Return a time of the credential that was read last; 0 or -1 if it has none."""
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
    """The programs `munge` and `unmunge`; what is secret goes through their standard input."""

    def encode(self, payload: bytes, socket: Path | None) -> tuple[Status, str]:
        """Return a credential, as `Munge` says; raise `ChildFailed` without the program."""
        if len(payload) > LARGEST:  # the program does not say so
            return Status.BAD_LENGTH, ""
        code, output = _run(["munge", *_socket(socket)], payload)
        return _status(code), output.decode("ascii", "replace").strip()

    def decode(self, credential: bytes, socket: Path | None) -> Decoded:
        """Return what the daemon says, as `Munge` says; raise `ChildFailed` without the program."""
        if len(credential) > LARGEST:
            return Decoded(Status.BAD_LENGTH)
        argv = ["unmunge", f"--keys={_KEYS}", *_socket(socket)]
        code, output = _run(argv, credential.partition(b"\0")[0])
        found = _OUTPUT.fullmatch(output)
        if found is None:
            # A success that we cannot read must not count as one.
            return Decoded(_status(code) or Status.SNAFU)
        times = _times(int(found[1] or 0), int(found[2] or 0))
        return Decoded(_status(code), _id(int(found[3])), _id(int(found[4])), found[5], *times)


def _socket(socket: Path | None) -> list[str]:
    return [] if socket is None else [f"--socket={socket}"]


def _run(argv: list[str], content: bytes) -> tuple[int, bytes]:
    """Return exit code and output of a program; raise `ChildFailed` where there is none."""
    problem = ""
    try:
        done = subprocess.run(
            argv, input=content, capture_output=True, timeout=PROGRAM_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return Status.TIMEOUT, b""
    except OSError as error:
        problem = error.strerror or "no such program"
    else:
        return done.returncode, done.stdout
    raise ChildFailed(
        f"{argv[0]} cannot be started: {problem}.", exit_code=None, signal=None, stderr=""
    )


def _status(code: int) -> Status:
    return Status(code) if code in Status._value2member_map_ else Status.SNAFU


def _times(made_at: int, read_at: int) -> tuple[float | None, float | None]:
    """Return when a credential was made, and its age; None for both if it could not be read."""
    if made_at <= 0 or read_at <= 0:
        return None, None
    return float(made_at), float(read_at - made_at)


def _id(value: int) -> int:
    """Return a uid or gid; (uid_t) -1 is nobody's."""
    return -1 if value > HIGHEST_ID else value


@functools.cache
def find_munge() -> Munge:
    """Return libmunge, or where it is missing the programs."""
    try:
        return Library()
    except OSError:
        return Programs()
