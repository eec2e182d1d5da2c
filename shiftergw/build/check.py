"""Check a squashfs file against its plan, entry by entry, with `unsquashfs`.

`unsquashfs -lln -UTC` prints a tree as `walk` reads a plan: parents first, the names of a directory
in bytewise order. Names and targets come raw, with whatever newlines and arrows are in them, so the
listing cannot be parsed alone; read beside the plan, each line says whether it is the expected one.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Event
from typing import IO, TYPE_CHECKING

from twisted.internet.defer import Deferred

from shiftergw.errors import ChildFailed, ConversionFailed, TimedOut, printable
from shiftergw.oci.budget import stoppable
from shiftergw.oci.tree import SYMLINK, Directory, walk
from shiftergw.plumbing.gather import gather_or_cancel
from shiftergw.plumbing.process import Command, run_command

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorProcess, IReactorTime

    from shiftergw.oci.flatten import Plan
    from shiftergw.plumbing.threads import Threads

LIMIT = 1800.0
"""Seconds that reading the metadata of a whole file system may take."""

_ROOT = b"squashfs-root"  # the name of the root in listings of `unsquashfs`
_HEAD = re.compile(rb"(\S{10}) (\d+/\d+) +(\d+) (\d{4}-\d\d-\d\d \d\d:\d\d) ")
_HEAD_LIMIT = 128  # longer than any head, padding included
_CHUNK = 1 << 16
_INODES = re.compile(rb"^Number of inodes (\d+)$", re.MULTILINE)


async def check(
    path: Path,
    plan: Plan,
    mksquashfs: str,
    threads: Threads,
    reactor: IReactorProcess,
    clock: IReactorTime,
) -> None:
    """Compare the squashfs file at `path` with its plan; raise `ConversionFailed` on a difference.

    The number of inodes is compared, and every name with its type, mode, owner, size, time to the
    minute and symlink target. The data is not read.
    """
    program = unsquashfs_of(mksquashfs)
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        summary = await run_command(
            Command([program, "-s", str(path)], env, total=LIMIT), reactor, clock
        )
    except (ChildFailed, TimedOut) as error:
        raise _difference_error(_describe(error)) from error
    match = _INODES.search(summary.stdout)
    inodes = match[1].decode() if match else "an unknown number"
    if inodes != str(plan.inodes):
        raise _difference_error(f"{inodes} of inodes where {plan.inodes} were planned")

    reading, writing = os.pipe()

    async def list_tree() -> str | None:
        command = Command([program, "-lln", "-UTC", str(path)], env, stdout=writing, total=LIMIT)
        running = Deferred.fromCoroutine(run_command(command, reactor, clock))
        os.close(writing)
        try:
            await running
        except (ChildFailed, TimedOut) as error:
            return _describe(error)
        return None

    async def read_listing() -> str | None:
        # Leaving before the end of the listing closes the pipe, and that ends `unsquashfs`.
        stop = Event()
        with os.fdopen(reading, "rb", buffering=0) as listing:
            return await threads.run_until(stop.set, difference, listing, plan.root, stop)

    failure, mismatch = await gather_or_cancel([list_tree(), read_listing()])
    if failure or mismatch:
        raise _difference_error("; ".join(filter(None, [mismatch, failure])))


def unsquashfs_of(mksquashfs: str) -> str:
    """Return the `unsquashfs` in the directory of `mksquashfs`, or else that of the PATH."""
    program = shutil.which(mksquashfs)
    beside = Path(program or mksquashfs).with_name("unsquashfs")
    return str(beside) if os.access(beside, os.X_OK) else "unsquashfs"


def _difference_error(detail: str) -> ConversionFailed:
    return ConversionFailed(
        "The converted image is not what was planned, so it was thrown away.",
        remedy="Try again; if it lasts, tell the site's support: the gateway's log says more.",
        detail=detail,
    )


def _describe(error: ChildFailed | TimedOut) -> str:
    return f"{error.what} {printable(error.detail)}".strip()


def difference(listing: IO[bytes], root: Directory, stop: Event) -> str | None:
    """Return the first difference between the output of `unsquashfs -lln` and a plan, in words.

    Blocks, and holds at most one chunk and one entry of the listing in memory. Raises
    `StopRequested` soon after `stop` is set, unless the listing is slow: end its writer too.
    """
    data, at = b"", 0
    for mode, size, minute, text in stoppable(_plan_lines(root, stop), stop):
        while len(data) - at < _HEAD_LIMIT + len(text):
            chunk = listing.read(_CHUNK)
            if not chunk:
                break
            data, at = data[at:] + chunk, 0
        head = _HEAD.match(data, at)
        if head is None or not data.startswith(text, head.end()):
            listing_text = printable(data[at : at + 300]) or "its end"
            return f"{printable(text)} is planned, the listing has {listing_text}"
        if (
            head[1] != mode
            or head[2] != b"0/0"
            or (size is not None and int(head[3]) != size)
            or (minute is not None and head[4] != minute)
        ):
            expected_head = f"{mode.decode()} 0/0 {size} {minute and minute.decode()}"
            return f"{printable(text)} is {printable(head[0])} where {expected_head} is planned"
        at = head.end() + len(text)
    rest = data[at:] or listing.read(_CHUNK)
    return f"{printable(rest)} is listed and not planned" if rest else None


def _plan_lines(
    root: Directory, stop: Event
) -> Iterator[tuple[bytes, int | None, bytes | None, bytes]]:
    """Yield mode, size, time and text of each expected line; unpredictable values are None."""
    # `mksquashfs` makes the root itself, at a time of its own; directories have no size in a plan.
    yield b"drwxr-xr-x", None, None, _ROOT + b"\n"
    for path, node in walk(root, stop):
        minute = _minute(node.mtime // 60)
        text = b"%b/%b\n" % (_ROOT, path)
        if isinstance(node, Directory):
            yield _mode(stat.S_IFDIR | node.mode), None, minute, text
        elif node.kind == SYMLINK:
            text = b"%b/%b -> %b\n" % (_ROOT, path, node.target)
            yield b"lrwxrwxrwx", len(node.target), minute, text
        else:
            yield _mode(stat.S_IFREG | node.mode), node.size, minute, text


@lru_cache
def _mode(mode: int) -> bytes:
    return stat.filemode(mode).encode()


@lru_cache(maxsize=4096)
def _minute(minutes: int) -> bytes:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(60 * minutes)).encode()
