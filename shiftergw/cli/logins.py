"""The file `~/.udiRoot/.cred`: a user's logins at registries, shared with `shifterimg`.

A line is `SYSTEM:LOCATION=MUNGE:…:`, a munge credential with the payload `user:password`. The
credential expires, but the user who made it can still decode it. A location may contain colons
(`host:port`), the name of a system does not. Everything here blocks.

A change replaces the file, so the process that changes it holds a lock on another file beside it.
Readers need no lock. `shifterimg` does not use the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from threading import Lock

from shiftergw.cli.exits import Misuse

DIRECTORY = ".udiRoot"
FILE = ".cred"
LOCK = ".cred.lock"
LOCK_LIMIT = 10.0
"""Seconds to wait for the lock."""

_LOCK_POLL = 0.05
_DATABASE_LOCK = Lock()
"""Serializes queries of threads for several systems: NSS modules may not be thread-safe."""

_DATABASE_WAITS = (0.1, 0.5, 0.0)
"""Seconds to wait after each failed query of the database of users."""

PASSWORD_LIMIT = 64 * 1024
"""Bytes of the longest password: tokens are long, but a file given by mistake is longer."""

DEFAULT = "default"
"""The location that stands for the gateway's default registry."""

_VALUE = b"=MUNGE:"
_LOCATION = re.compile(r"[!-<>-~]+")
"""ASCII without blanks and the equals sign, which ends a location in the file."""

_SYSTEM = re.compile(r"[!-9;<>-~]+")
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""Errors of file systems that are mounted without locks."""

_OPEN_MODE = 0o077
"""The permission bits of group and others."""


def home() -> Path:
    """Return the caller's home by the host's database of users, as `shifterimg` does.

    Raises `Misuse` if there is none.
    """
    for wait in _DATABASE_WAITS:
        # Python raises KeyError also if the database fails for a moment.
        with suppress(KeyError), _DATABASE_LOCK:
            directory = Path(pwd.getpwuid(os.getuid()).pw_dir)
            break
        time.sleep(wait)
    else:
        raise Misuse(f"The database of users on this machine does not have you, {os.getuid()}.")
    if not directory.is_absolute():
        raise Misuse(
            f"The database of users on this machine has no home for you, {os.getuid()}: the admins"
            " of the machine can set it."
        )
    return directory


def check_key(system: str, location: str) -> None:
    """Raise `Misuse` for names that cannot be written into the file."""
    if not _SYSTEM.fullmatch(system):
        raise Misuse(f"{system!r} cannot be a system's name: no ':', no '=', no blanks.")
    if not _LOCATION.fullmatch(location):
        raise Misuse(f"{location!r} cannot be a location: no '=', no blanks, ASCII only.")


def login_text(user: bytes, password: bytes) -> bytes:
    """Return `user:password`; raise `Misuse` if user or password is invalid."""
    user = user.strip()
    check_user(user)
    if not password:
        raise Misuse("There is no password. Nothing is kept.")
    if b"\0" in password or b"\n" in password or len(password) > PASSWORD_LIMIT:
        raise Misuse("This is no password, but several lines, or a file. Nothing is kept.")
    return user + b":" + password


def check_user(user: bytes) -> None:
    """Raise `Misuse` for a text that cannot be a user's name."""
    if not user or b":" in user or b"\0" in user:
        raise Misuse("A user has a name, without ':'. Nothing is kept.")


def credentials_of(content: bytes, system: str) -> Mapping[str, str]:
    """Return the credentials of a system by location; of two for one location the last."""
    credentials = {}
    for line in BytesIO(content):
        key, sign, value = line.rpartition(_VALUE)
        owner, colon, location = key.partition(b":")
        if sign and colon and owner == os.fsencode(system):
            credentials[os.fsdecode(location)] = f"MUNGE:{value.decode('ascii', 'replace').strip()}"
    return credentials


def replace_credential(content: bytes, system: str, location: str, credential: str | None) -> bytes:
    """Return a file's content with a new credential for a location; without any if it is None.

    Every other line stays as it is, byte for byte.
    """
    key = os.fsencode(f"{system}:{location}")
    line = [] if credential is None else [key + b"=" + credential.encode("ascii") + b"\n"]
    lines = list(BytesIO(content))
    places = [number for number, text in enumerate(lines) if text.rpartition(_VALUE)[0] == key]
    if not places:
        if line and content and not content.endswith(b"\n"):
            content += b"\n"
        return content + b"".join(line)
    for place in places[:0:-1]:
        del lines[place]
    lines[places[0] : places[0] + 1] = line
    return b"".join(lines)


def _try_lock(descriptor: int) -> bool:
    """Lock a file; return False if another process has locked it.

    Returns True, too, if the file system does not support locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


class LoginFile:
    """The file in one home; file and directory must belong to the user and not be links."""

    def __init__(self, owner_home: Path) -> None:
        """Name the file, without opening it."""
        self._directory = owner_home / DIRECTORY
        self.path = self._directory / FILE
        # A warning about the file that was read: anybody on this machine can decode a credential.
        self.warning = ""

    def read(self) -> bytes:
        """Return the content, empty if the file is missing; raise `Misuse` if it is unusable."""
        with self._errors_as_misuse():
            try:
                directory = self._open()
            except FileNotFoundError:
                return b""
            try:
                return self._read(directory)
            finally:
                os.close(directory)

    def change(self, change: Callable[[bytes], bytes]) -> None:
        """Replace the content by the result of `change`, with a rename; raise `Misuse`.

        Changes of several processes are made one after the other, so none is lost.
        """
        with self._errors_as_misuse():
            with suppress(FileExistsError):
                self._directory.mkdir(mode=0o700)
            directory = self._open()
            try:
                os.fchmod(directory, 0o700)
                with self._lock(directory):
                    self._write(directory, change(self._read(directory)))
            finally:
                os.close(directory)

    def _open(self) -> int:
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK)
        try:
            self._check_owner(directory, self._directory)
        except BaseException:
            os.close(directory)
            raise
        return directory

    def _read(self, directory: int) -> bytes:
        try:
            # O_NONBLOCK: opening a named pipe must not wait for its writer.
            descriptor = os.open(FILE, os.O_RDONLY | os.O_NONBLOCK | _NO_LINK, dir_fd=directory)
        except FileNotFoundError:
            return b""
        with os.fdopen(descriptor, "rb") as file:
            self._check_owner(descriptor, self.path)
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise Misuse(f"{self.path} is no file.")
            if mode & _OPEN_MODE:
                self.warning = (
                    f"the permissions 0{stat.S_IMODE(mode):o} of {self.path} are too open: others"
                    f" may know your logins. Run: chmod 600 {self.path}"
                )
            return file.read()

    @contextmanager
    def _lock(self, directory: int) -> Iterator[None]:
        """Hold the lock in the block; raise `Misuse` if another process holds it too long."""
        # A file, since NFS has no exclusive locks on directories. It is never removed, so all
        # processes lock the same file.
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | _NO_LINK
        descriptor = os.open(LOCK, flags, 0o600, dir_fd=directory)
        try:
            deadline = time.monotonic() + LOCK_LIMIT
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise Misuse(
                        f"Another login or logout has held {self._directory / LOCK} for"
                        f" {LOCK_LIMIT:.0f} s. End it and try again; nothing is changed."
                    )
                time.sleep(_LOCK_POLL)
            yield
        finally:
            os.close(descriptor)

    def _write(self, directory: int, content: bytes) -> None:
        temporary = f"{FILE}.{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK
        descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, FILE, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        os.fsync(directory)

    def _check_owner(self, descriptor: int, path: Path) -> None:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise Misuse(f"{path} belongs to somebody else.")

    @contextmanager
    def _errors_as_misuse(self) -> Iterator[None]:
        """Raise `Misuse` for errors of the system; they contain nothing of the file."""
        try:
            yield
        except OSError as error:
            # Linux reports ENOTDIR for a link in place of a directory.
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                raise Misuse(
                    f"{self.path} must be a plain file in a directory: no links."
                ) from error
            raise Misuse(f"{self.path} cannot be used: {error.strerror}.") from error
