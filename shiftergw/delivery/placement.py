"""Put a converted file at its final path on this machine: as a hard link, or as a checked copy."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from twisted.logger import Logger

from shiftergw.delivery.disk_calls import DiskCall, DiskCalls
from shiftergw.delivery.files import MODE
from shiftergw.delivery.image_names import temporary_name
from shiftergw.delivery.local_delta import DeltaCopy
from shiftergw.delivery.local_files import open_for_writing
from shiftergw.delivery.proof import time_limit
from shiftergw.errors import DeliveryFailed
from shiftergw.model.records import Progress
from shiftergw.plumbing.channel import SystemUnavailable
from shiftergw.plumbing.disk_errors import translated_disk_errors
from shiftergw.plumbing.files import removed_on_error, replace_durably

if TYPE_CHECKING:
    from shiftergw.delivery.stripes import LocalStripes
    from shiftergw.plumbing.threads import Threads
    from shiftergw.ports import DeltaSource, Report

_log = Logger()

_PIECE = 4 << 20
_UNAVAILABLE = frozenset(
    {
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
    }
)
"""Error numbers of network file systems whose server is unavailable for now."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A finished file `source` of this digest, and the path `target` where it is to be put.

    If it is copied, the ranges of `delta` are copied from an image beside the target.
    """

    source: Path
    target: Path
    sha256: str
    delta: DeltaSource | None = None

    async def run(
        self,
        calls: DiskCalls,
        report: Report,
        *,
        stripes: LocalStripes | None = None,
        may_link: bool = True,
    ) -> None:
        """Put the file in place: temporary name, checked, mode 0600, fsync, rename, fsync.

        With `may_link` the target may be a hard link of `source`, unless `stripes` chooses a layout
        for it. Raises `DeliveryFailed` and `NoSpace`. Can be cancelled between two pieces.
        """
        temporary = self.target.with_name(temporary_name(self.target.name))
        with directory_errors():
            has_layout = False
            if stripes is not None:
                size = (await calls.run(self.source.stat)).st_size
                has_layout = await stripes.make(temporary, size)
            report_later = partial(calls.call_reactor, report)
            delta_copy = None
            if self.delta is not None:
                log: Callable[[str], None] = partial(calls.call_reactor, self._log_whole_copy)
                delta_copy = DeltaCopy(self.delta, self.target.parent, self.sha256, log)
            copy = partial(self._copy, temporary, report_later, delta_copy, exists=has_layout)
            link_or_copy = partial(self._place, temporary, copy, may_link and not has_layout)
            await calls.run_long(link_or_copy)

    def _place(
        self, temporary: Path, copy: Callable[[DiskCall], None], may_link: bool, call: DiskCall
    ) -> None:
        """Create the temporary, by a link or by `copy`, and rename it. Blocks."""
        with removed_on_error(temporary):
            if not (may_link and self._link(temporary)):
                copy(call)
            call.note_progress()
            replace_durably(temporary, self.target)
            # If both names belong to the same file, the rename does nothing.
            temporary.unlink(missing_ok=True)

    def _link(self, temporary: Path) -> bool:
        """Make a hard link of the source; return whether its mode and file system allow that.

        A converted file is never changed in place, and was synced and checked when it was made, so
        a link is as good as a copy, and costs nothing.
        """
        status = self.source.lstat()
        if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) != MODE:
            return False
        try:
            os.link(self.source, temporary)
        except OSError:
            return False
        return True

    def _copy(
        self,
        temporary: Path,
        report: Callable[[Progress], None],
        delta_copy: DeltaCopy | None,
        call: DiskCall,
        *,
        exists: bool,
    ) -> None:
        """Copy the source in pieces and hash them; the temporary may exist already, empty."""
        digest = hashlib.sha256()
        done = 0
        flags = 0 if exists else os.O_CREAT | os.O_EXCL
        with (
            self.source.open("rb", buffering=0) as source,
            open_for_writing(temporary, flags) as copy,
        ):
            if delta_copy is not None and delta_copy.run(source, copy, temporary, report, call):
                return
            total = os.fstat(source.fileno()).st_size
            while piece := source.read(_PIECE):
                call.note_progress()
                copy.write(piece)
                digest.update(piece)
                done += len(piece)
                report(Progress("deliver", done, total))
            copy.flush()
            call.note_progress(time_limit(total))
            os.fsync(copy.fileno())
        if digest.hexdigest() != self.sha256:
            raise DeliveryFailed("The converted file changed before it was delivered.")

    def _log_whole_copy(self, reason: str) -> None:
        _log.info("{name} is copied as a whole: {reason}", name=self.target.name, reason=reason)


async def place(
    source: Path, target: Path, sha256: str, threads: Threads, report: Report, *, link: bool
) -> None:
    """Put a finished file at any path, as `Placement.run` does.

    With `link` the target may be a hard link of `source`. Then nothing else may use `source`,
    because the user of `target` may write into it.
    """
    calls = DiskCalls(str(target.parent), threads)
    await Placement(source, target, sha256).run(calls, report, may_link=link)


def directory_errors() -> AbstractContextManager[None]:
    """Turn errors of the image directory's file system into errors for users and admins."""
    return translated_disk_errors("The system's image directory has no space left.", _unusable)


def _unusable(error: OSError) -> DeliveryFailed:
    error_class = SystemUnavailable if error.errno in _UNAVAILABLE else DeliveryFailed
    return error_class(
        f"The system's image directory cannot be used: {error.strerror}.",
        remedy="Tell the site's support: `shiftergw check` says more.",
    )
