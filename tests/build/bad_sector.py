"""A bad sector below a file: reading the file fails, though its size and time are as before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shiftergw.build import image_build, pack_files
from shiftergw.build.converted import measure as measure_image
from shiftergw.build.image_output import ImageOutput
from shiftergw.build.pack_measures import measure


@contextmanager
def bad_sector(pack: Path, code: int, *, is_shared: bool = False) -> Iterator[None]:
    """Have the copy of the data of a pack, and its hash, fail; a new pack at its path is sound.

    If the blocks are shared, as on XFS and Btrfs, the copy reads nothing and does not fail, but the
    hash of the image does.
    """
    copy = ImageOutput.copy
    with pack.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        # While the file is open, no other one gets the number of its inode.
        inode = os.fstat(file.fileno()).st_ino

        def fail_for(status: os.stat_result) -> None:
            if status.st_ino == inode:
                raise OSError(code, os.strerror(code), str(pack))

        def copy_data(output: ImageOutput, source: int, *arguments: Any) -> None:
            if not is_shared:
                fail_for(os.fstat(source))
            copy(output, source, *arguments)

        def hash_pack(descriptor: int, *arguments: Any) -> Any:
            fail_for(os.fstat(descriptor))
            return measure(descriptor, *arguments)

        def hash_image(image: Path, *arguments: Any) -> Any:
            if is_shared and pack.exists():
                fail_for(pack.stat())
            return measure_image(image, *arguments)

        patch.setattr(ImageOutput, "copy", copy_data)
        patch.setattr(pack_files, "measure", hash_pack)
        patch.setattr(image_build, "measure", hash_image)
        yield
