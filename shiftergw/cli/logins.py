"""The file `~/.udiRoot/.cred`: a user's logins at registries, for this client and `shifterimg`.

A line is `SYSTEM:LOCATION=MUNGE:…:`, a credential with the payload `user:password`. The credential
expires, but its maker's client opens it all the same. A location may hold colons (`host:port`), a
system's name does not. Everything here blocks.

Who changes the file holds a lock on another one beside it, since each change puts a new file in the
place of the old one; readers need none. `shifterimg` knows of no lock.
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

from shiftergw.cli.exits import Misused

DIRECTORY = ".udiRoot"
FILE = ".cred"
LOCK = ".cred.lock"
LOCK_LIMIT = 10.0
"""Seconds to wait for another change to end."""

_LOCK_POLL = 0.05
_ASKING = Lock()
"""One question at a time, where several systems are asked for: modules of NSS may not bear more."""

_DATABASE_WAITS = (0.1, 0.5, 0.0)
"""Seconds after each question to the database of users that brought nothing."""

DEFAULT = "default"
"""The location that stands for the gateway's default registry."""

_VALUE = b"=MUNGE:"
_LOCATION = re.compile(r"[!-<>-~]+")
"""ASCII without blanks; an equals sign ends a location in the file."""

_SYSTEM = re.compile(r"[!-9;<>-~]+")
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""What file systems that are mounted without locks say to one."""

_OTHERS = 0o077
"""The permissions of group and others."""


def home() -> Path:
    """Return the caller's home as the host's database has it, as `shifterimg` does.

    Raises `Misused` if there is none.
    """
    for wait in _DATABASE_WAITS:
        # Python tells a database that fails for a moment as one that does not know the user.
        with suppress(KeyError), _ASKING:
            directory = Path(pwd.getpwuid(os.getuid()).pw_dir)
            break
        time.sleep(wait)
    else:
        raise Misused(f"The database of users on this machine does not have you, {os.getuid()}.")
    if not directory.is_absolute():
        raise Misused(
            f"The database of users on this machine has no home for you, {os.getuid()}: the admins"
            " of the machine can set it."
        )
    return directory


def check_key(system: str, location: str) -> None:
    """Raise `Misused` for names that cannot stand in the file."""
    if not _SYSTEM.fullmatch(system):
        raise Misused(f"{system!r} cannot be a system's name: no ':', no '=', no blanks.")
    if not _LOCATION.fullmatch(location):
        raise Misused(f"{location!r} cannot be a location: no '=', no blanks, ASCII only.")


def credentials_of(content: bytes, system: str) -> Mapping[str, str]:
    """Return the credentials of one system by location; of two for one location the last."""
    found = {}
    for line in BytesIO(content):
        key, sign, value = line.rpartition(_VALUE)
        owner, colon, location = key.partition(b":")
        if sign and colon and owner == os.fsencode(system):
            found[os.fsdecode(location)] = f"MUNGE:{value.decode('ascii', 'replace').strip()}"
    return found


def replaced(content: bytes, system: str, location: str, credential: str | None) -> bytes:
    """Return a file's content with this credential for a location, or with none.

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
    """Lock a file unless another process has; True, too, where no file can be locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


class LoginFile:
    """The file in one home; neither it nor its directory may be a link or somebody else's."""

    def __init__(self, owner_home: Path) -> None:
        """Touch nothing yet."""
        self._directory = owner_home / DIRECTORY
        self.path = self._directory / FILE
        # What to tell the user about the file that was read: anybody here can open a credential.
        self.warning = ""

    def read(self) -> bytes:
        """Return its content, nothing if there is none; raise `Misused` if it is not as it should.

        The directory may be missing, too.
        """
        with self._explained():
            try:
                directory = self._open()
            except FileNotFoundError:
                return b""
            try:
                return self._read(directory)
            finally:
                os.close(directory)

    def change(self, change: Callable[[bytes], bytes]) -> None:
        """Put what `change` makes of the content in its place, by rename; raise `Misused`.

        One change after the other: what another process has just written is not lost.
        """
        with self._explained():
            with suppress(FileExistsError):
                self._directory.mkdir(mode=0o700)
            directory = self._open()
            try:
                os.fchmod(directory, 0o700)
                with self._locked(directory):
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
            # Not to wait for a pipe's other end.
            descriptor = os.open(FILE, os.O_RDONLY | os.O_NONBLOCK | _NO_LINK, dir_fd=directory)
        except FileNotFoundError:
            return b""
        with os.fdopen(descriptor, "rb") as file:
            self._check_owner(descriptor, self.path)
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise Misused(f"{self.path} is no file.")
            if mode & _OTHERS:
                self.warning = (
                    f"the permissions 0{stat.S_IMODE(mode):o} of {self.path} are too open: others"
                    f" may know your logins. Run: chmod 600 {self.path}"
                )
            return file.read()

    @contextmanager
    def _locked(self, directory: int) -> Iterator[None]:
        """Hold the lock in the block; raise `Misused` if another process keeps it too long."""
        # A file: NFS gives no exclusive lock on a directory. It stays, so that it is always one.
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | _NO_LINK
        descriptor = os.open(LOCK, flags, 0o600, dir_fd=directory)
        try:
            deadline = time.monotonic() + LOCK_LIMIT
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise Misused(
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
            raise Misused(f"{path} belongs to somebody else.")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Tell the system's errors as `Misused`; they have no content of the file."""
        try:
            yield
        except OSError as error:
            # A link where a directory must be is ENOTDIR to Linux.
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                raise Misused(
                    f"{self.path} must be a plain file in a directory: no links."
                ) from error
            raise Misused(f"{self.path} cannot be used: {error.strerror}.") from error
