"""The key of a pack: what shapes its bytes (the arguments, the program, and its libraries)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from shiftergw.errors import ChildFailed, ConversionFailed, TimedOut, printable
from shiftergw.plumbing.hashing import hash_file
from shiftergw.plumbing.process import Command, run_command

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorProcess, IReactorTime

    from shiftergw.model.build_options import SquashOptions
    from shiftergw.plumbing.threads import Threads

_REVISION = 3
"""The revision of our arguments, the order of contents, the hashing and the sidecars.

Increase it when one of them changes: packs of another revision are not used.
"""

_LIBRARY = re.compile(rb"^\s*\S+ => (/\S+) \(0x", re.MULTILINE)
_NO_COMPRESSOR = re.compile(r"lib(c|m|pthread|dl|rt|gcc_s)\.so")
"""Libraries that do not compress: their updates shall not make all packs anew."""

_LISTING_SECONDS = 10


def pack_arguments(options: SquashOptions, output: Path) -> list[str]:
    """Return the arguments with which `mksquashfs` makes a pack.

    No time of the clock gets into a pack, so that two packs of one layer are the same bytes; the
    environment must not have `SOURCE_DATE_EPOCH`, which excludes `-mkfs-time`. Raises `ValueError`
    for `extra` arguments, which may change more than the compression.
    """
    if options.extra:
        raise ValueError("packs are made without extra arguments")
    argv = ["-", str(output), "-tar", "-noappend", "-no-progress", "-quiet"]
    argv += ["-all-root", "-no-xattrs", "-no-duplicates", "-mkfs-time", "0", "-all-time", "0"]
    return [*argv, *options.arguments]


def pack_key(options: SquashOptions, tools: str) -> str:
    """Return 12 hexadecimal digits that differ if the packs of a layer may have different bytes.

    `tools` is what `tools_digest` returned.
    """
    shape = [_REVISION, options.compression, tools]
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:12]


async def tools_digest(
    binary: str, threads: Threads, reactor: IReactorProcess, clock: IReactorTime
) -> str:
    """Return a digest of this `mksquashfs` and of the libraries that compress for it.

    Their bytes are hashed, because updates of distributions keep the version. The dynamic linker of
    glibc lists the libraries; a static program has none. If the program is a script, the version
    of the program behind it is hashed, too. Raises `ConversionFailed`.
    """
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    # ld.so(8): the program is not run, and its libraries are listed.
    command = Command(
        [binary, "-version"], {**env, "LD_TRACE_LOADED_OBJECTS": "1"}, total=_LISTING_SECONDS
    )
    try:
        listing = (await run_command(command, reactor, clock)).stdout
        version = b""
        if await threads.run(_is_script, binary):
            command = Command([binary, "-version"], env, total=_LISTING_SECONDS)
            version = (await run_command(command, reactor, clock)).stdout
        return await threads.run(hash_tools, binary, listing, version)
    except (ChildFailed, TimedOut) as error:
        raise ConversionFailed(
            "mksquashfs cannot be started.", detail=printable(error.detail or error.what)
        ) from error
    except OSError as error:
        raise ConversionFailed(
            "The gateway cannot read mksquashfs or one of its libraries.", detail=str(error)
        ) from error


def _is_script(binary: str) -> bool:
    """Return whether another program runs this one. Blocks. Raises `OSError`."""
    with Path(shutil.which(binary) or binary).open("rb") as file:
        return file.read(2) == b"#!"


def hash_tools(binary: str, listing: bytes, version: bytes = b"") -> str:
    """Return a digest of a program, its libraries, and the version that it prints.

    `listing` is that of the dynamic linker. Blocks. Raises `OSError`.
    """
    libraries = sorted(Path(os.fsdecode(path)) for path in _LIBRARY.findall(listing))
    compressors = [path for path in libraries if not _NO_COMPRESSOR.match(path.name)]
    program = Path(shutil.which(binary) or binary)
    digests = [hash_file(path)[1] for path in (program, *compressors)]
    return hashlib.sha256("".join(digests).encode() + version).hexdigest()
