"""An inode that the disk has damaged: each call of the system that needs it fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def bad_inode(path: Path, code: int = errno.EIO) -> Iterator[None]:
    """Have the inode of `path` be damaged during the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "open", "unlink"):
            patch.setattr(os, name, partial(_call_unless, getattr(os, name), path, code))
        yield


def _call_unless(
    call: Callable[..., Any], bad_path: Path, code: int, path: Any, *arguments: Any, **options: Any
) -> Any:
    if isinstance(path, str | Path) and Path(path) == bad_path:
        raise OSError(code, os.strerror(code), str(path))
    return call(path, *arguments, **options)
